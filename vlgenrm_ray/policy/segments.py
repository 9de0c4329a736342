"""Claim-level rewards: segments of a response, their tokens, and their advantages.

    response -> segments [start, end) with rewards -> tokens of each segment -> advantage, or reward, of each token

Fine-grained rewards (arXiv 2306.01693; RLHF-V, 2312.00849) say which claim of a response is wrong. A group-relative
algorithm then gives the tokens of each segment an advantage of their own; with a critic, the reward of a segment stands
at its last token. With segments that all have the reward of the response, both are those of the whole response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vlgenrm_ray.policy.advantages import GroupStatus, shape_reward
from vlgenrm_ray.records import Rollout, Segment

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig

SegmentGroups = Sequence[Sequence[tuple[float, ...] | None]]
"""Rewards of the segments of each sample, by group; None for a sample without a reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAdvantages:
    """Advantages of the segments of one question's samples."""

    advantages: tuple[tuple[float, ...] | None, ...]
    """One per segment of each sample; None for a sample that must not enter the loss."""
    status: GroupStatus


def segment_rewards(rollout: Rollout, config: "AlgorithmConfig", *, max_tokens: int) -> tuple[float, ...] | None:
    """Return the shaped rewards of a rollout's segments; of the whole response if it has none.

    None if the rollout has no reward, or must not be used.
    """
    if rollout.reward is None:
        return None
    shaped = [
        shape_reward(
            reward,
            num_tokens=len(rollout.ids),
            truncated=rollout.finish == "length",
            max_tokens=max_tokens,
            config=config.overlong,
        )
        for reward in [segment.reward for segment in rollout.segments] or [rollout.reward]
    ]
    rewards = tuple(reward for reward in shaped if reward is not None)
    return rewards if len(rewards) == len(shaped) else None


def segment_relative_advantages(groups: SegmentGroups, config: "AlgorithmConfig") -> list[SegmentAdvantages]:
    """Compute A_is = (r_is - mean) / s for segment s of sample i within each group.

    Every sample counts as much as any other, whatever its number of segments: with R_i the mean over the segments of
    sample i, mean is the mean of R_i, and s^2 = sum_i mean_s (r_is - mean)^2 / (n - 1) over the n samples of the group
    (`scale: group`), the same over all rewards of the step around their mean (`batch`), or 1 (`none`). If the segments
    of each sample agree, these are the advantages of `advantages.group_relative_advantages`.

    Args:
        groups: Rewards of segments by sample and group.
        config: Settings `scale`, `min_scored` and `min_std`.

    Returns:
        One entry per group, in order.

    Raises:
        ValueError: A reward is not finite.
    """
    scored = [[rewards for rewards in group if rewards is not None] for group in groups]
    counted = [rewards for group in scored if len(group) >= config.min_scored for rewards in group]
    batch_std = _moments(counted)[1] if counted else 0.0

    def standardise(group: Sequence[tuple[float, ...] | None], rewards: list[tuple[float, ...]]) -> SegmentAdvantages:
        if len(rewards) < config.min_scored:
            return SegmentAdvantages(advantages=(None,) * len(group), status=GroupStatus.TOO_FEW_SCORED)
        mean, std = _moments(rewards)
        is_used = std > config.min_std
        divisor = {"group": std, "batch": batch_std, "none": 1.0}[config.scale]
        return SegmentAdvantages(
            advantages=tuple(
                None if sample is None else tuple((r - mean) / divisor if is_used else 0.0 for r in sample)
                for sample in group
            ),
            status=GroupStatus.USED if is_used else GroupStatus.ZERO_STD,
        )

    return [standardise(group, rewards) for group, rewards in zip(groups, scored, strict=True)]


def _moments(samples: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """Return mean and standard deviation (divisor n - 1) of segments, each sample with the same weight."""
    if not all(np.isfinite(rewards).all() for rewards in samples):
        raise ValueError(f"rewards must be finite: {list(samples)}")
    mean = float(np.mean([np.mean(rewards) for rewards in samples]))
    squares = sum(float(np.mean(np.square(np.subtract(rewards, mean)))) for rewards in samples)
    return mean, (squares / (len(samples) - 1)) ** 0.5 if len(samples) > 1 else 0.0


# -- tokens ----------------------------------------------------------------------------------------------------


def token_ranges(pieces: Sequence[str], segments: Sequence[Segment]) -> list[range]:
    """Divide the tokens of a response among its segments.

    A token belongs to the segment that its first character other than whitespace is in; one between two segments, and
    what follows the last (whitespace, the end of turn), to the segment before it; one before the first to the first.

    Args:
        pieces: Text that each token adds; together they are the response.
        segments: One or more segments, in order and without overlap.

    Returns:
        The tokens of each segment: adjacent ranges that together cover all tokens. A segment that begins and ends
        within one token may have none.
    """
    starts = [segment.start for segment in segments[1:]]
    bounds = [0]
    position = 0
    for number, piece in enumerate(pieces):
        first = position + len(piece) - len(piece.lstrip())
        position += len(piece)
        # Whitespace alone does not begin a segment.
        if piece.strip():
            bounds += [number] * (sum(start <= first for start in starts) - (len(bounds) - 1))
    bounds += [len(pieces)] * (len(segments) + 1 - len(bounds))
    return [range(start, end) for start, end in pairwise(bounds)]


def spread_over_tokens(values: Sequence[float], ranges: Sequence[range]) -> tuple[float, ...]:
    """Return the value of each token: that of its segment."""
    return tuple(value for value, tokens in zip(values, ranges, strict=True) for _ in tokens)


def place_at_ends(rewards: Sequence[float], ranges: Sequence[range]) -> tuple[float, ...]:
    """Return the reward of each token: 1/n of the reward of a segment, of n, at its last token.

    Their sum is the mean reward of the segments, hence that of the response if all agree.
    """
    tokens = [0.0] * ranges[-1].stop
    for reward, segment in zip(rewards, ranges, strict=True):
        # A segment within one token ends where the segment before it does.
        tokens[max(segment.stop - 1, 0)] += reward / len(rewards)
    return tuple(tokens)
