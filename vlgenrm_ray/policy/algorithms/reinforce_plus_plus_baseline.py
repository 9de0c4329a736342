"""REINFORCE++-baseline: REINFORCE++ with the group's mean reward as baseline (arXiv 2501.03262).

    a_i = r_i - mean(r)                                                    over the samples of a question
    A_i = (a_i - mean(a)) / std(a)                                         over all tokens of the step
    loss = -min(ratio A, clip(ratio) A) + coefficient x KL                 mean over tokens, estimator k2

Unlike GRPO it divides by the deviation of the whole step, so a question whose rewards hardly differ is not blown up.
"""

from typing import TYPE_CHECKING

import numpy as np

from vlgenrm_ray.policy.advantages import Array, GroupAdvantages, RewardGroups, advantages_by_group
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig


def centred_advantages(rewards: RewardGroups, config: "AlgorithmConfig") -> list[GroupAdvantages]:
    """Compute a_i = r_i - mean of the group. `config.scale` does not apply: the tokens of the step are whitened."""

    def centre(group: Array) -> Array:
        centred: Array = group - np.mean(group)
        return centred

    return advantages_by_group(rewards, config, centre)


REINFORCE_PLUS_PLUS_BASELINE = Algorithm(
    group_advantages=centred_advantages,
    whiten=True,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "ratio": "token",
        "normalise": "tokens",
        "scale": "none",
        "kl": {"coefficient": 0.01, "where": "loss", "estimator": "k2"},
    },
)
