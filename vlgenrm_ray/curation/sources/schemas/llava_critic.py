"""LLaVA-Critic: the question and two responses stand in the critic's prompt, the verdict in its answer.

Rows that rate one response (pointwise) have no pair: the question is read, the rated response is not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import is_turns, parse_turns
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError
from vlgenrm_ray.errors import DropReason

_PAIR = re.compile(
    r"Question:\s*(?P<question>.*?)\s*\n\s*(?:The )?first response:\s*(?P<first>.*?)\s*\n\s*(?:The )?second response:"
    r"\s*(?P<second>.*?)\s*(?:\n\s*ASSISTANT:\s*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
_ONE = re.compile(
    r"Question:\s*(?P<question>.*?)\s*\n\s*(?:The )?(?:LMM )?(?:response|answer)\s*:", re.IGNORECASE | re.DOTALL
)
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
        prompts = [_prompt(row.get("conversations")) for row in sample]
        if any(_PAIR.search(prompt) for prompt in prompts):
            return SchemaMatch(95, "conversations ask which of two responses is better")
        if any("fair judge" in prompt and _ONE.search(prompt) for prompt in prompts):
            return SchemaMatch(94, "conversations ask to score one response")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        turns = parse_turns(fields.take("question", "conversations"), "conversations")
        prompt = next((turn.text for turn in turns if turn.role == "user"), "")
        verdict = next((turn.text for turn in turns if turn.role == "assistant"), "")
        images, id = take_images(fields), fields.take("id", *ID_NAMES)
        match = _PAIR.search(prompt)
        if match is None:
            if (one := _ONE.search(prompt)) is None:
                raise MalformedRowError("conversations hold no question with the first and the second response")
            yield RowContent(turns=parse_turns(_bare(one["question"]), "question"), images=images, id=id)
            return
        fields.note("ranking", "conversations")
        responses = {"first": _bare(match["first"]), "second": _bare(match["second"])}
        better = read_verdict(verdict)
        fields.note("chosen", "conversations")
        fields.note("rejected", "conversations")
        yield RowContent(
            turns=parse_turns(_bare(match["question"]), "question"),
            images=images,
            id=id,
            chosen=responses[better],
            rejected=responses["second" if better == "first" else "first"],
        )


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


def _bare(text: str) -> str:
    """Return a text without the brackets in which the prompt sets it."""
    text = text.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
