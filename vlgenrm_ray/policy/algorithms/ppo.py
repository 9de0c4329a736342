"""PPO: proximal policy optimization with a critic (arXiv 1707.06347).

    A_t by generalized advantage estimation from the critic's values       see `advantages.gae`
    loss = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t)

The critic is a model of its own with its own optimizer (`policy.critic`) and learns by `losses.value_loss`. The
defaults share GRPO's clip and KL term; classic RLHF (arXiv 2203.02155) is
`clip_high: 0.2, kl: {where: reward, estimator: k1}`.
"""

from vlgenrm_ray.policy.algorithms.algorithm import Algorithm

PPO = Algorithm(
    uses_critic=True,
    min_group_size=1,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.28,
        "ratio": "token",
        "normalise": "tokens",
        "kl": {"coefficient": 0.04},
        "ppo": {"gamma": 1.0, "gae_lambda": 0.95, "value_clip": 0.2},
    },
)
