"""A question with a label: R1-V, AMBER, VLMEvalKit's tables, VQA sets. Numbers and booleans become texts.

Options of a multiple choice, in columns A, B, C, ... or in a list, are added to the question.
"""

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns, reference_text
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
from vlgenrm_ray.curation.sources.values import MalformedRowError, is_missing, parse_json_list, to_text

_QUESTIONS = ("question", "query", "problem", "text", "prompt")
_LABELS = (*REFERENCE_NAMES, "answers", "target", "correct_answer")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPTION_LISTS = ("choices", "options")


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
        options = _options(fields)
        if options and isinstance(question, str):
            lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
            question = "\n".join([question.strip(), *lines])
        label = fields.take("label", *_LABELS)
        if options and isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(options):
            label = _LETTERS[label]
        yield RowContent(
            turns=parse_turns(question, "question"),
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            group=to_text(fields.take("group", *GROUP_NAMES) or "", "group"),
            kind=to_text(fields.take("kind", *KIND_NAMES, "type") or "", "kind"),
            reference=reference_text(label, "label"),
        )


def _options(fields: RowFields) -> list[str]:
    """Return the options of a multiple choice, in the order of their letters; [] if there are none."""
    for name in _OPTION_LISTS:
        value = _parse_list(fields.row.get(name))
        if isinstance(value, (list, tuple)) and value:
            fields.note("question", name)
            return [to_text(option, name) for option in value][: len(_LETTERS)]
    options = []
    for letter in _LETTERS:
        value = fields.row.get(letter)
        if is_missing(value) or value == "" or isinstance(value, (Mapping, list, bytes)):
            break
        fields.note("question", letter)
        options.append(to_text(value, letter))
    return options if len(options) > 1 else []


def _parse_list(value: Any) -> Any:
    """Return the list in a text, in JSON or as Python writes it (MMMU)."""
    value = parse_json_list(value)
    if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value)
    return value
