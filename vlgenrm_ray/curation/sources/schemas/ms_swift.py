"""ms-swift: messages that end with the better answer and the rejected one beside them; query, response and history."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import (
    answer_text,
    is_turns,
    parse_history,
    parse_turns,
    reference_text,
    split_answer,
    split_pair,
)
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError


class MsSwiftPairs:
    """`messages` + `rejected_response` or `rejected_messages`; `query`, `response`, `history`, `rejected_response`."""

    title = "ms-swift"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        rejected = columns & {"rejected_response", "rejected_messages"}
        if rejected and any(is_turns(row.get("messages")) for row in sample):
            return SchemaMatch(92, f"messages with {', '.join(sorted(rejected))}")
        if {"query", "response"} <= columns and any(isinstance(row.get("response"), str) for row in sample):
            return SchemaMatch(82, "columns query and response")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        turns = parse_turns(fields.take("question", "messages"), "messages")
        if not turns:
            system = parse_turns(fields.take("question", "system") or None, "system", role="system")
            turns = (*system, *parse_history(fields.take("question", "history"), "history"))
            turns += parse_turns(fields.take("question", "query"), "query")
            response = fields.take("chosen" if "rejected_response" in fields else "reference", "response")
            turns += parse_turns(response, "response", role="assistant")
        prompt, answer = split_answer(turns)
        other = parse_turns(fields.take("rejected", "rejected_messages"), "rejected_messages")
        rejected = answer_text(fields.take("rejected", "rejected_response"), "rejected_response")
        if other:
            prompt, answer, rejected = split_pair(turns, other)
        if rejected is not None and answer is None:
            raise MalformedRowError("has rejected_response alone: messages does not end with the better answer")
        if fields.row.get("rejected_images"):
            fields.take("rejected", "rejected_images")
            raise MalformedRowError("rejected_images: both responses must be about the same images")
        if rejected is not None:
            fields.note("chosen", "messages" if "messages" in fields else "response")
        yield RowContent(
            turns=prompt,
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            reference=reference_text(fields.take("reference", "solution"), "solution")
            or (answer if rejected is None else None),
            chosen=answer if rejected is not None else None,
            rejected=rejected,
        )
