"""POVID and InternLM-XComposer-Reward: two whole conversations that differ in their last answer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns, split_pair
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError

_SIDES = (("conversations", "rejected_conversations"), ("conversations_a", "conversations_b"))
_REJECTED = tuple(rejected for _, rejected in _SIDES)


class Povid:
    """`conversations` and `rejected_conversations`, or `conversations_a` (better) and `conversations_b`."""

    title = "POVID, InternLM-XComposer-Reward"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        sides = next((sides for sides in _SIDES if set(sides) <= columns), None)
        return SchemaMatch(95, f"columns {sides[0]} and {sides[1]}") if sides else None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        chosen_name, rejected_name = next((s for s in _SIDES if s[1] in fields), _SIDES[0])
        chosen = parse_turns(fields.take("chosen", chosen_name), chosen_name)
        rejected = parse_turns(fields.take("rejected", rejected_name), rejected_name)
        if not chosen or not rejected:
            raise MalformedRowError(f"has no {chosen_name if not chosen else rejected_name}; give both conversations")
        fields.note("question", chosen_name)
        prompt, better, worse = split_pair(chosen, rejected)
        images = take_images(fields)
        yield RowContent(turns=prompt, images=images, id=fields.take("id", *ID_NAMES), chosen=better, rejected=worse)
