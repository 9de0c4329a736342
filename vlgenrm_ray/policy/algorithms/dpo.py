"""DPO: direct preference optimization on pairs of responses, without rollouts (arXiv 2305.18290).

    h(y, m) = log p(y | m, q) - log p_ref(y | m, q)                        summed over the tokens of y
    loss = -log sigmoid(beta (h(chosen, image) - h(rejected, image)))      mean over pairs

`m` is the image, `q` the question, and beta the weight of the KL to the reference (`kl.coefficient`). The pairs come
from the pool: a run folder's preferences, or any data set with a chosen and a rejected response (`pool.source`).
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.losses import PairLogRatios

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.policy.config import AlgorithmConfig


def dpo_loss(pairs: PairLogRatios, config: "AlgorithmConfig") -> "torch.Tensor":
    """Compute -log sigmoid(beta (h(chosen) - h(rejected))) (eq. 7 of the paper), [P]."""
    import torch

    return -torch.nn.functional.logsigmoid(config.kl.coefficient * (pairs.chosen - pairs.rejected))


DPO = Algorithm(pair_loss=dpo_loss, defaults={"kl": {"coefficient": 0.1}})
