"""mDPO: DPO that also prefers the right image, and anchors the chosen response (arXiv 2406.11839).

    conditional = -log sigmoid(beta (h(chosen, image) - h(chosen, other image)))
    anchor      = -log sigmoid(beta h(chosen, image))
    loss = DPO + conditional + anchor                                      mean over pairs

DPO on image questions can ignore the image and learn from the texts alone. The conditional term compares the chosen
response with itself under a crop of the image that shows at most 20 % of it; the anchor, with the paper's delta of 0,
keeps the chosen response's probability from falling, which DPO alone allows.
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.algorithms.dpo import dpo_loss
from vlgenrm_ray.policy.losses import PairLogRatios

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.policy.config import AlgorithmConfig


def mdpo_loss(pairs: PairLogRatios, config: "AlgorithmConfig") -> "torch.Tensor":
    """Compute the sum of the preference, the conditional and the anchor term (eq. 3 to 6 of the paper), [P].

    Raises:
        ValueError: The log-ratios with the other image are missing.
    """
    import torch

    if pairs.chosen_other_image is None:
        raise ValueError("mDPO needs the log-ratios of the chosen responses with another image")
    log_sigmoid, beta = torch.nn.functional.logsigmoid, config.kl.coefficient
    conditional = -log_sigmoid(beta * (pairs.chosen - pairs.chosen_other_image))
    anchor = -log_sigmoid(beta * pairs.chosen)
    return dpo_loss(pairs, config) + conditional + anchor


MDPO = Algorithm(pair_loss=mdpo_loss, needs_other_image=True, defaults={"kl": {"coefficient": 0.1}})
