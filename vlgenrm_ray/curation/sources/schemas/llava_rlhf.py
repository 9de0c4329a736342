"""LLaVA-RLHF's human preferences: conversations, two outputs, and the number of the better one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns, split_answer
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, show, to_number


class LlavaRlhf:
    """`conversations`, `output_1`, `output_2`, `preference` (1 or 2)."""

    title = "LLaVA-RLHF"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"output_1", "output_2", "preference"} <= columns:
            return SchemaMatch(95, "columns output_1, output_2, preference")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        question = fields.take("question", "conversations", "prompt", "question")
        turns, _ = split_answer(parse_turns(question, "conversations"))
        preference = fields.take("ranking", "preference")
        number = to_number(preference)
        if number not in (1, 2):
            raise MalformedRowError(f"preference must be 1 or 2, not {show(preference)}")
        names = ("output_1", "output_2") if number == 1 else ("output_2", "output_1")
        yield RowContent(
            turns=turns,
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            chosen=answer_text(fields.take("chosen", names[0]), names[0]),
            rejected=answer_text(fields.take("rejected", names[1]), names[1]),
        )
