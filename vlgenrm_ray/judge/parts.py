"""A response taken apart: each sentence is judged by itself, and the whole is worth what its worst sentence is.

Divide and conquer, as in RLAIF-V (arXiv 2405.17220): a judge that loses its way in a long response can still be sure of
a short one. There a response's score is the number of its claims refused; the least reward, which is one of those of a
whole response and favours no number of sentences, is our choice.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from vlgenrm_ray.judge.inquiry import Item
from vlgenrm_ray.records import Judgement

# A newline with its blanks only from where those begin: tried from each of many, it would take their number squared.
_BETWEEN = re.compile(r"(?:(?<=[.!?])(?<!\b(?:Dr|Mr|Ms|St|vs)\.)|(?<=[.!?][\"')\]]))\s+(?=[^a-z\s])|(?<!\s)\s*\n\s*")

_MOST = 32
"""Parts of one response: someone who sends a thousand sentences of a letter must not get a thousand critiques."""


def parts(item: Item, unit: Literal["response", "sentence"]) -> tuple[Item, ...]:
    """What of an item is judged at a time: the item itself, or sentence by sentence, where its response has several."""
    return (item,) if unit == "response" else sentences(item)


def sentences(item: Item) -> tuple[Item, ...]:
    """The item's response sentence by sentence, several at a time of more than 32; the item itself where it is one."""
    found = _split(item.response)
    if len(found) < 2:
        return (item,)
    return tuple(replace(item, id=f"{item.id}/s{number}", response=part) for number, part in enumerate(found))


def _split(response: str) -> list[str]:
    found: list[str] = []
    numbers: list[str] = []
    for part in _BETWEEN.split(response.strip()):
        # "1." says nothing without what it is the number of.
        numbers.append(part)
        if any(letter.isalpha() for letter in part):
            found.append(" ".join(numbers).strip())
            numbers.clear()
    if numbers:
        found.append(" ".join(numbers).strip())
    each = -(-len(found) // _MOST)
    return [" ".join(found[i : i + each]) for i in range(0, len(found), each)]


def least(id: str, parts: Sequence[Judgement]) -> Judgement:
    """The judgement of a whole from those of its parts; without a reward, and with its status, where one of them is."""
    if len(parts) == 1:
        return parts[0]
    worst = next((part for part in parts if part.reward is None), None)
    if worst is None:
        worst = min(parts, key=lambda part: part.reward if part.reward is not None else 0.0)
    return Judgement(
        id=id,
        reward=worst.reward,
        status=worst.status,
        num_critiques=sum(part.num_critiques for part in parts),
        verdict_mass=sum(part.verdict_mass for part in parts) / len(parts),
        critiques=tuple(text for part in parts for text in part.critiques),
        p_yes=tuple(p for part in parts for p in part.p_yes),
    )
