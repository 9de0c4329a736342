"""Lengths of a pair's two sides, so that no judge can learn that longer is better, or worse.

In the spirit of RLAIF-V's data balancing, which drops the pairs that skew most until chosen and rejected are equally
long on average. There it is done over the whole set; here per pair and per image, so that a stream need not wait.
"""

from collections.abc import Sequence

from pydantic import Field

from vlgenrm_ray.records import Preference
from vlgenrm_ray.settings import Settings


class BalanceConfig(Settings):
    """How unlike in length two sides may be. Lengths are in characters."""

    max_gap: float = Field(default=0.5, ge=0)
    """Largest difference within a pair, as a part of the longer side."""
    free_gap: int = Field(default=12, ge=0)
    """Differences up to this are never too large: "no" against "three" in a short answer."""
    max_mean_gap: float = Field(default=0.2, ge=0)
    """Largest mean of chosen minus rejected over an image's pairs, as a part of their mean length."""


def gap(pair: Preference) -> int:
    """How much longer the chosen side is, in characters."""
    return len(pair.chosen) - len(pair.rejected)


def is_even(one: str, other: str, config: BalanceConfig) -> bool:
    """Whether two texts are near enough in length to stand against each other."""
    longer = max(len(one), len(other))
    return abs(len(one) - len(other)) <= max(config.free_gap, config.max_gap * longer)


def skewing(pairs: Sequence[Preference], config: BalanceConfig) -> list[Preference]:
    """The pairs of an image to leave out, most skewing first, until the rest is even on average. Keeps one at least."""
    kept, out = list(pairs), []
    while len(kept) > 1:
        total = sum(map(gap, kept))
        mean_length = sum(len(p.chosen) + len(p.rejected) for p in kept) / (2 * len(kept))
        mean = total / len(kept)
        if abs(mean) <= max(config.max_mean_gap * mean_length, config.free_gap):
            break
        most = max(kept, key=lambda p: gap(p) if total > 0 else -gap(p))
        kept.remove(most)
        out.append(most)
    return out
