"""LLaVA-Critic: the question and two responses stand in the critic's prompt, the verdict in its answer.

Rows that rate one response (pointwise) have no pair: the question is read, the rated response is not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlgenrm_ray.curation.sources.conversations import is_turns, parse_turns
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError
from vlgenrm_ray.errors import DropReason

_BETTER = re.compile(
    r"\b(?P<better>first|second)\b(?:\s+(?:response|answer|one))?\s+is\s+(?:\w+\s+){0,2}?(?:better|superior|preferred|best)"
    r"|(?:prefer|choose|better (?:response|answer|one) is)\s+(?:the\s+)?(?P<chosen>first|second)"
    r"|(?P<worse>first|second)\b(?:\s+(?:response|answer|one))?\s+is\s+(?:\w+\s+){0,2}?(?:worse|inferior)",
    re.IGNORECASE,
)
_TIE = re.compile(
    r"equally (?:good|well|accurate|bad)|\btie\b|(?:both|two) (?:\w+ )?(?:responses|answers) are (?:equal|equally)",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\[\[\s*(A|B|C|1|2)\s*\]\]")


class LlavaCritic:
    """`conversations`: the critic's prompt and its verdict in words."""

    title = "LLaVA-Critic"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        parts = [_split_prompt(_prompt(row.get("conversations"))) for row in sample]
        if any(len(part) == 3 for part in parts):
            return SchemaMatch(95, "conversations ask which of two responses is better")
        if any(len(part) == 2 for part in parts):
            return SchemaMatch(94, "conversations ask to score one response")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        turns = parse_turns(fields.take("question", "conversations"), "conversations")
        prompt = next((turn.text for turn in turns if turn.role == "user"), "")
        verdict = next((turn.text for turn in turns if turn.role == "assistant"), "")
        parts = _split_prompt(prompt)
        if not parts:
            raise MalformedRowError("conversations hold no question with the first and the second response")
        content = RowContent(
            turns=parse_turns(parts[0], "question"), images=take_images(fields), id=fields.take("id", *ID_NAMES)
        )
        if len(parts) == 2:
            yield content
            return
        for role in ("chosen", "rejected", "ranking"):
            fields.note(role, "conversations")
        _, first, second = parts
        chosen, rejected = (first, second) if read_verdict(verdict) == "first" else (second, first)
        yield replace(content, chosen=chosen, rejected=rejected)


def read_verdict(text: str) -> str:
    """Return "first" or "second", the last response that a verdict calls better.

    Raises:
        MalformedRowError: The verdict calls neither better, or both equal.
    """
    if letters := _LETTER.findall(text):
        if letters[-1] == "C":
            raise MalformedRowError("the verdict is a tie", DropReason.TIE)
        return "first" if letters[-1] in ("A", "1") else "second"
    verdicts = list(_BETTER.finditer(text))
    tie = list(_TIE.finditer(text))
    if tie and (not verdicts or tie[-1].start() > verdicts[-1].start()):
        raise MalformedRowError("the verdict calls both responses equal", DropReason.TIE)
    if not verdicts:
        raise MalformedRowError("the verdict names neither the first nor the second response as the better one")
    last = verdicts[-1]
    if worse := last["worse"]:
        return "second" if worse.lower() == "first" else "first"
    return (last["better"] or last["chosen"]).lower()


def _prompt(conversations: Any) -> str:
    if not is_turns(conversations):
        return ""
    return next((turn.text for turn in parse_turns(conversations, "conversations") if turn.role == "user"), "")


def _split_prompt(prompt: str) -> tuple[str, ...]:
    """Return the question and both responses of a prompt, the question and one response, or () if it is another."""
    lowered = prompt.lower()
    question = lowered.find("question:")
    first = lowered.find("first response:", question)
    second = lowered.find("second response:", first)
    if 0 <= question < first < second:
        texts = prompt[question:first], prompt[first:second], prompt[second:]
    elif "fair judge" in lowered and 0 <= question < (one := lowered.find(" response:", question)):
        texts = prompt[question:one], prompt[one:], ""
    else:
        return ()
    bare = tuple(_bare(text.partition(":")[2]) for text in texts if text)
    return bare if bare[0] else ()


def _bare(text: str) -> str:
    """Return a text without the words around it in the prompt, and without the brackets in which it is set."""
    text = text.strip().removesuffix("ASSISTANT:").strip()
    line, newline, last = text.rpartition("\n")
    if newline and last.strip().lower() in ("the", "the lmm"):
        text = line.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
