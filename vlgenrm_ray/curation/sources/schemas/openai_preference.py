"""OpenAI's preference form: input messages with a preferred and a non-preferred output."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch


class OpenAiPreference:
    """`input.messages`, `preferred_output`, `non_preferred_output`."""

    title = "OpenAI preferences"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"input", "preferred_output", "non_preferred_output"} <= columns:
            return SchemaMatch(95, "columns input, preferred_output, non_preferred_output")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        yield RowContent(
            turns=parse_turns(fields.take("question", "input.messages", "input"), "input"),
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            chosen=answer_text(fields.take("chosen", "preferred_output"), "preferred_output"),
            rejected=answer_text(fields.take("rejected", "non_preferred_output"), "non_preferred_output"),
        )
