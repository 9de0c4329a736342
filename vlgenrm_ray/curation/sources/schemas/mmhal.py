"""MMHal-Bench: open questions with a reference answer. Images are network addresses, looked up in `image_folder`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text


class MmHalRows:
    """`question`, `gt_answer`, `image_src`, `question_type`."""

    title = "MMHal-Bench"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"question_type", "image_src", "question", "gt_answer"} <= columns:
            return SchemaMatch(95, "columns question_type, image_src, question, gt_answer")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        answer = fields.take("reference", "gt_answer")
        yield RowContent(
            turns=parse_turns(fields.take("question", "question"), "question"),
            images=take_images(fields, "image", "image_path", "image_src"),
            id=fields.take("id", "question_id", "image_id"),
            kind=to_text(fields.take("kind", "question_type") or "", "question_type"),
            reference=None if answer is None else to_text(answer, "gt_answer"),
        )
