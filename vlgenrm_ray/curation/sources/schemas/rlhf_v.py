"""RLHF-V: the question and both responses are an object in JSON in the column `text`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, show


class RlhfV:
    """`text`: {"question", "chosen", "rejected"}; `image` holds bytes and path."""

    title = "RLHF-V"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if any(_parse(row.get("text")) is not None for row in sample):
            return SchemaMatch(95, "column text holds question, chosen and rejected in JSON")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        text = fields.take("question", "text")
        fields.note("chosen", "text.chosen")
        fields.note("rejected", "text.rejected")
        inner = _parse(text)
        if inner is None:
            raise MalformedRowError(f"text must hold question, chosen and rejected in JSON, not {show(text)}")
        kind = fields.take("kind", "origin_split", "origin_dataset")
        yield RowContent(
            turns=parse_turns(inner["question"], "question"),
            images=take_images(fields),
            id=fields.take("id", "id", "question_id"),
            kind=kind if isinstance(kind, str) and kind[:1] not in "[{" else "",
            chosen=answer_text(inner.get("chosen"), "chosen"),
            rejected=answer_text(inner.get("rejected"), "rejected"),
        )


def _parse(text: Any) -> Mapping[str, Any] | None:
    try:
        inner = json.loads(text) if isinstance(text, str) and text.lstrip()[:1] == "{" else text
    except (ValueError, RecursionError):
        return None
    return inner if isinstance(inner, Mapping) and {"question", "chosen", "rejected"} <= set(inner) else None
