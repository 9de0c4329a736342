"""RAFT: fine-tuning on the best of n samples, step by step (arXiv 2304.06767); best-of-n distillation.

    y* = sample of the highest reward                                      over the samples of a question
    loss = -log p(y*)                                                      mean over its tokens

`rollouts.group_size` is n. Groups whose rewards differ by less than `min_std` are left out: any of their samples would
be "the best" by chance. Samples are new in every step, so the policy distils its own improving best-of-n.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vlgenrm_ray.policy.advantages import Array, GroupAdvantages, RewardGroups, advantages_by_group
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.losses import likelihood_loss

if TYPE_CHECKING:
    from vlgenrm_ray.policy.config import AlgorithmConfig


def best_of_group(rewards: RewardGroups, config: "AlgorithmConfig") -> list[GroupAdvantages]:
    """Give the best sample of each group the advantage 1, and the others none, so that they are not computed.

    The first of several best samples is taken. `config.scale` does not apply.
    """

    def select_best(group: Array) -> Array:
        best: Array = (np.arange(len(group)) == np.argmax(group)).astype(np.float64)
        return best

    groups = advantages_by_group(rewards, config, select_best)
    return [replace(group, advantages=tuple(1.0 if a == 1.0 else None for a in group.advantages)) for group in groups]


RAFT = Algorithm(
    group_advantages=best_of_group,
    policy_loss=likelihood_loss,
    defaults={"normalise": "tokens", "scale": "none", "kl": {"coefficient": 0.0}, "importance": None},
)
