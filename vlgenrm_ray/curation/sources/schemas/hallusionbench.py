"""HallusionBench: yes/no questions about figures, in groups of one figure. Some need no figure, and are dropped."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text

_OWN = ("category", "subcategory", "set_id", "figure_id", "question_id")
_ANSWERS = {"0": "No", "1": "Yes", "2": "Uncertain"}


class HallusionBenchRows:
    """`gt_answer` 0 or 1 becomes the reference No or Yes; the id is that of category, set, figure and question."""

    title = "HallusionBench"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {*_OWN, "question", "visual_input"} <= columns:
            return SchemaMatch(98, f"columns {', '.join(_OWN)}, visual_input")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        parts = [to_text(value, name) for name in _OWN if (value := fields.take("id", name)) is not None]
        fields.note("group", *_OWN[:-1])
        answer = fields.take("label", "gt_answer")
        label = None if answer is None else to_text(answer, "gt_answer").strip()
        needs_none = str(fields.take("image", "visual_input")) == "0"
        yield RowContent(
            turns=parse_turns(fields.take("question", "question"), "question"),
            images=take_images(fields, "image", "image_path", "filename"),
            id="_".join(parts) or None,
            group="_".join(parts[:-1]),
            kind=parts[0] if parts else "",
            reference=None if label is None else _ANSWERS.get(label, label),
            no_image="the question is asked without a figure (visual_input 0)" if needs_none else "filename is empty",
        )
