"""RLOO: REINFORCE with a leave-one-out baseline (arXiv 2402.14740).

    A_i = r_i - mean of r_j over j != i                                    over the samples of a question
    loss = sum over tokens of -ratio A, divided by sequences x longest response allowed

On the first update of a step all ratios are 1, so the gradient is that of REINFORCE on whole responses up to the
constant divisor; the clip matters from the second update on. The paper subtracts the KL to the reference from the
reward; the weighted penalty in the loss has the same expected gradient (see `losses.estimate_kl`).
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.policy.advantages import Array, GroupAdvantages, RewardGroups, advantages_by_group
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig


def leave_one_out_advantages(rewards: RewardGroups, config: "AlgorithmConfig") -> list[GroupAdvantages]:
    """Compute A_i = r_i - mean of the group's other rewards. `config.scale` does not apply."""

    def subtract_baseline(group: Array) -> Array:
        baseline: Array = (group.sum() - group) / (len(group) - 1)
        return group - baseline

    return advantages_by_group(rewards, config, subtract_baseline)


RLOO = Algorithm(
    group_advantages=leave_one_out_advantages,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "ratio": "token",
        "normalise": "constant",
        "scale": "none",
        "kl": {"coefficient": 0.04, "where": "loss", "weighted": True},
    },
)
