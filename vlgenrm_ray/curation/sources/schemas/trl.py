"""TRL: conversational preferences with an explicit or an implicit prompt, prompts alone, prompts with completions.

Images are in `images` or `image`; the content of a turn is a text or a list of parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import (
    ChatTurn,
    answer_text,
    is_turns,
    parse_turns,
    reference_text,
    split_pair,
    split_transcripts,
)
from vlgenrm_ray.curation.sources.rows import (
    ID_NAMES,
    KIND_NAMES,
    REFERENCE_NAMES,
    RowContent,
    RowFields,
    is_desirable,
    take_images,
)
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, to_text


class TrlPreference:
    """`prompt`, `chosen`, `rejected` as lists of turns; without `prompt` it is what both sides begin with."""

    title = "TRL"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        prompt = any(is_turns(row.get("prompt")) for row in sample)
        sides = any(is_turns(row.get("chosen")) for row in sample)
        if {"chosen", "rejected"} <= columns and sides and "prompt" in columns:
            return SchemaMatch(88, "prompt, chosen and rejected are chat turns: explicit prompt")
        if {"chosen", "rejected"} <= columns and not columns & {
            "question",
            "prompt",
            "query",
            "conversations",
            "messages",
        }:
            if sides:
                return SchemaMatch(88, "chosen and rejected are conversations without a prompt: implicit prompt")
            if any(_transcripts(row) for row in sample):
                return SchemaMatch(80, "chosen and rejected are rendered transcripts: implicit prompt")
        if {"prompt", "completion"} <= columns:
            return SchemaMatch(85, "columns prompt and completion")
        return SchemaMatch(72, "prompt is a list of chat turns") if prompt else None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        prompt = parse_turns(fields.take("question", "prompt"), "prompt")
        chosen, rejected = fields.take("chosen", "chosen"), fields.take("rejected", "rejected")
        completion = answer_text(fields.take("reference", "completion"), "completion")
        names = REFERENCE_NAMES if completion is None else ()
        reference = reference_text(fields.take("reference", *names, "reward_model.ground_truth"), "reference")
        if completion is not None and is_desirable(fields, completion):
            reference = completion
        if prompt or chosen is None or rejected is None:
            better, worse = answer_text(chosen, "chosen"), answer_text(rejected, "rejected")
        else:
            fields.note("question", "chosen")
            prompt, better, worse = _split(chosen, rejected)
        images = take_images(fields)
        yield RowContent(
            turns=prompt,
            images=images,
            id=fields.take("id", *ID_NAMES),
            kind=to_text(fields.take("kind", *KIND_NAMES) or "", "kind"),
            reference=reference,
            chosen=better,
            rejected=worse,
        )


def _split(chosen: Any, rejected: Any) -> tuple[tuple[ChatTurn, ...], str, str]:
    if is_turns(chosen) and is_turns(rejected):
        return split_pair(parse_turns(chosen, "chosen"), parse_turns(rejected, "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str) and (split := split_transcripts(chosen, rejected)):
        return split
    raise MalformedRowError("no prompt: chosen and rejected are no conversations that begin alike")


def _transcripts(row: Mapping[str, Any]) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    return isinstance(chosen, str) and isinstance(rejected, str) and split_transcripts(chosen, rejected) is not None
