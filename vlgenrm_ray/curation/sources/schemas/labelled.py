"""A question with a label: R1-V, AMBER, VLMEvalKit's tables, VQA sets. Numbers and booleans become texts.

Options of a multiple choice, in columns A, B, C, ..., are added to the question.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns
from vlgenrm_ray.curation.sources.rows import (
    GROUP_NAMES,
    ID_NAMES,
    KIND_NAMES,
    REFERENCE_NAMES,
    RowContent,
    RowFields,
    take_images,
)
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, to_text

_QUESTIONS = ("question", "query", "problem", "text", "prompt")
_LABELS = (*REFERENCE_NAMES, "answers", "target", "correct_answer")
_OPTIONS = "ABCDEFGHI"


class LabelledQuestion:
    """Question, image and label; the label becomes the reference."""

    title = "questions with a label (R1-V, AMBER, VQA)"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        question = next((n for n in _QUESTIONS if any(isinstance(row.get(n), str) for row in sample)), None)
        label = next((n for n in _LABELS if n in columns and n != question), None)
        if question and label and not {"chosen", "rejected"} & columns:
            return SchemaMatch(50, f"a question under {question!r} with a label under {label!r}")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        question = fields.take("question", *_QUESTIONS)
        if question is None:
            raise MalformedRowError(f"no question: none of the columns {', '.join(_QUESTIONS)} has a text")
        options = [f"{letter}. {to_text(value, letter)}" for letter in _OPTIONS if (value := _option(fields, letter))]
        if options and isinstance(question, str):
            question = "\n".join([question.strip(), *options])
        label = fields.take("label", *_LABELS)
        yield RowContent(
            turns=parse_turns(question, "question"),
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            group=to_text(fields.take("group", *GROUP_NAMES) or "", "group"),
            kind=to_text(fields.take("kind", *KIND_NAMES, "type") or "", "kind"),
            reference=None
            if label is None
            else answer_text(label, "label")
            if not _is_plain(label)
            else to_text(label, "label"),
        )


def _option(fields: RowFields, letter: str) -> Any:
    value = fields.row.get(letter)
    return fields.take("question", letter) if isinstance(value, (str, int, float)) and value != "" else None


def _is_plain(label: Any) -> bool:
    return isinstance(label, (str, bool, int, float)) or (
        isinstance(label, (list, tuple)) and not any(isinstance(item, Mapping) for item in label)
    )
