"""MM-RLHF and its reward benchmark: a prompt, chosen and rejected with reasons; an image or a video."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlgenrm_ray.curation.sources.rows import RowContent, RowFields
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.schemas.pairs import pair_content
from vlgenrm_ray.curation.sources.values import MalformedRowError
from vlgenrm_ray.errors import DropReason

_OWN = {"chosen_reason", "rejected_reason", "is_tie", "ls_factor"}
_CATEGORIES = ("mcq", "long", "short", "safety", "video")


class MmRlhf:
    """Rows that share an id form a group, over which the benchmark's ACC+ is defined."""

    title = "MM-RLHF, MM-RLHF-RewardBench"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"prompt", "chosen", "rejected"} <= columns and columns & _OWN:
            return SchemaMatch(90, f"columns prompt, chosen, rejected with {', '.join(sorted(columns & _OWN))}")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        if fields.take("tie", "is_tie") is True:
            raise MalformedRowError("is_tie: the data set rates both responses alike", DropReason.TIE)
        content = pair_content(fields)
        path = str(content.images[0]) if content.images else str(fields.row.get("video", ""))
        yield replace(content, kind=content.kind or next((c for c in _CATEGORIES if c in path), ""))
