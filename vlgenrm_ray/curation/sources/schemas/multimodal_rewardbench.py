"""Multimodal RewardBench: a text, an image, two outputs, and which of them is better."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, show, to_text


class MultimodalRewardBenchRows:
    """`Text`, `Image`, `Output1`, `Output2`, `Better` ("Output1" or "Output2"), `Category`, `ID`."""

    title = "Multimodal RewardBench"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"Output1", "Output2", "Better"} <= columns:
            return SchemaMatch(95, "columns Output1, Output2, Better")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        better = fields.take("ranking", "Better")
        if better not in ("Output1", "Output2"):
            raise MalformedRowError(f"Better must be Output1 or Output2, not {show(better)}")
        worse = "Output2" if better == "Output1" else "Output1"
        yield RowContent(
            turns=parse_turns(fields.take("question", "Text"), "Text"),
            images=take_images(fields, "Image"),
            id=fields.take("id", "ID"),
            kind=to_text(fields.take("kind", "Category") or "", "Category"),
            chosen=answer_text(fields.take("chosen", better), better),
            rejected=answer_text(fields.take("rejected", worse), worse),
        )
