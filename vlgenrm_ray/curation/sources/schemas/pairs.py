"""A question, an image and the texts of two responses: SPA-VL, MMPR, mDPO, Silkie, and many others.

The question may be a prompt rendered by a chat template, as in mDPO: "A chat between ... USER: <image> ... ASSISTANT:".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, is_rendered, is_turns, parse_turns, reference_text
from vlgenrm_ray.curation.sources.rows import ID_NAMES, KIND_NAMES, REFERENCE_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, to_text
from vlgenrm_ray.judge.chat_templates import strip_special_tokens

QUESTION_NAMES = ("question", "prompt", "query", "instruction", "text", "input")
_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("response", "rejected_response"),
    ("better_response", "worse_response"),
    ("preferred", "dispreferred"),
    ("win", "lose"),
    ("accepted", "rejected"),
    ("pos", "neg"),
)


class TextPairs:
    """Question, image, chosen and rejected as texts."""

    title = "SPA-VL, MMPR, mDPO, and other pairs of texts"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        question = next((name for name in QUESTION_NAMES if name in columns), None)
        sides = _sides(columns)
        if question is None or sides is None:
            return None
        if any(is_turns(row.get(sides[0])) for row in sample):
            return None
        return SchemaMatch(70, f"columns {question}, {sides[0]}, {sides[1]}")

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        yield pair_content(fields)


def pair_content(fields: RowFields) -> RowContent:
    """Read a question with a pair of responses, or without one."""
    question = fields.take("question", *QUESTION_NAMES)
    turns = parse_turns(question, "question")
    if not turns:
        raise MalformedRowError(f"no question: none of the columns {', '.join(QUESTION_NAMES)} has a text")
    chosen, rejected = _sides(frozenset(name for name in fields.row if name in fields)) or ("chosen", "rejected")
    images = take_images(fields)
    better = answer_text(fields.take("chosen", chosen), "chosen")
    worse = answer_text(fields.take("rejected", rejected), "rejected")
    if is_rendered(question):
        better, worse = (None if text is None else strip_special_tokens(text).strip() for text in (better, worse))
    return RowContent(
        turns=turns,
        images=images,
        id=fields.take("id", *ID_NAMES),
        kind=to_text(fields.take("kind", *KIND_NAMES) or "", "kind"),
        reference=reference_text(fields.take("reference", "answer_gt", *REFERENCE_NAMES), "reference"),
        chosen=better,
        rejected=worse,
    )


def _sides(columns: frozenset[str]) -> tuple[str, str] | None:
    complete = (sides for sides in _SIDES if set(sides) <= columns)
    partial = (sides for sides in _SIDES[:1] if set(sides) & columns)
    return next(complete, next(partial, None))
