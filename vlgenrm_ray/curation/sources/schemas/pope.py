"""POPE: "Is there a ... in the image?" with the label yes or no."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text


class PopeQuestions:
    """`question_id`, `image`, `text`, `label`."""

    title = "POPE"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        labels = {str(row.get("label")).strip().lower() for row in sample}
        if {"question_id", "image", "text", "label"} <= columns and labels <= {"yes", "no"}:
            return SchemaMatch(90, "columns question_id, image, text, label, which is yes or no")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        label = fields.take("label", "label")
        yield RowContent(
            turns=parse_turns(fields.take("question", "text"), "text"),
            images=take_images(fields),
            id=fields.take("id", "question_id"),
            kind="existence",
            reference=None if label is None else to_text(label, "label"),
        )
