"""LLaVA: conversations of `from` and `value` with one image or several. The last answer becomes the reference."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import is_turns, parse_turns, split_answer
from vlgenrm_ray.curation.sources.rows import ID_NAMES, KIND_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text


class LlavaConversations:
    """`conversations` and `image`."""

    title = "LLaVA conversations"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if any(is_turns(row.get("conversations")) for row in sample):
            return SchemaMatch(75, "conversations are chat turns")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        system = parse_turns(fields.take("question", "system") or None, "system", role="system")
        turns, answer = split_answer((*system, *parse_turns(fields.take("question", "conversations"), "conversations")))
        if answer is not None:
            fields.note("reference", "conversations")
        yield RowContent(
            turns=turns,
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            kind=to_text(fields.take("kind", *KIND_NAMES) or "", "kind"),
            reference=answer,
        )
