"""Ranking of N responses by a pairwise judge: which of them are compared, and each one's mean probability of winning.

Up to `MAX_OPPONENTS` + 1 responses meet in a round robin. Of more, each meets `MAX_OPPONENTS` others, its neighbours in
a circle, so the cost grows with N and not with its square. A comparison is two judgements, one in each order of the
responses, combined as p(first better) = (p_first_shown_first + 1 - p_second_shown_first) / 2. Pure functions.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

MAX_OPPONENTS = 8
"""Most opponents of a response; even."""


def combine_orders(p_forward: float | None, p_backward: float | None) -> float | None:
    """Compute the probability that the first of two responses is better, from the judgements in both orders.

    Args:
        p_forward: p(the response shown first is better) with the first response shown first; None if unreadable.
        p_backward: The same with the second response shown first.

    Returns:
        The mean over both orders, in which a preference for a position cancels; None if either is unreadable.
    """
    return None if p_forward is None or p_backward is None else (p_forward + 1.0 - p_backward) / 2.0


def distinct_indices(texts: Sequence[str]) -> list[int]:
    """Return the index of the first occurrence of each distinct text. Equal responses are not compared."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        first.setdefault(text.strip(), index)
    return list(first.values())


def schedule(num: int) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of `num` responses that are compared, each once, i before j in the circle."""
    num_neighbours = num if num <= MAX_OPPONENTS + 1 else MAX_OPPONENTS // 2
    pairs = {
        (min(i, j), max(i, j)): None
        for i in range(num)
        for k in range(1, num_neighbours + 1)
        if (j := (i + k) % num) != i
    }
    return list(pairs)


def win_rates(texts: Sequence[str], p_first: Mapping[tuple[int, int], float | None]) -> list[float | None]:
    """Compute each response's mean probability of being better than its opponents, in [0, 1].

    Args:
        texts: The N responses; equal ones have the same rate.
        p_first: (i, j), indices into `texts` -> probability that response i is better; None if unreadable.

    Returns:
        One rate per response, in order. None if none of its comparisons is readable; 1/2 if all texts are equal.
    """
    won: dict[int, list[float]] = {}
    for (i, j), p in p_first.items():
        if p is not None:
            won.setdefault(i, []).append(p)
            won.setdefault(j, []).append(1.0 - p)
    distinct = distinct_indices(texts)
    if len(distinct) == 1:
        return [0.5] * len(texts)
    rate_of = {texts[i].strip(): fmean(won[i]) if i in won else None for i in distinct}
    return [rate_of[text.strip()] for text in texts]


def comparisons(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of indices into `texts` that a tournament compares: `schedule` of the distinct texts."""
    distinct = distinct_indices(texts)
    return [(distinct[i], distinct[j]) for i, j in schedule(len(distinct))]
