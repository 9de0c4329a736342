"""GRPO: group relative policy optimization (DeepSeekMath, arXiv 2402.03300).

    A_i = (r_i - mean(r)) / std(r)                                         over the samples of a question
    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) + coefficient x KL(policy || reference)

The defaults have DAPO's mean over tokens and its wider upper clip (arXiv 2503.14476). The paper's own loss is
`normalise: sequences, clip_high: 0.2`.
"""

from vlgenrm_ray.policy.advantages import group_relative_advantages
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.segments import segment_relative_advantages

GRPO = Algorithm(
    group_advantages=group_relative_advantages,
    segment_advantages=segment_relative_advantages,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.28,
        "ratio": "token",
        "normalise": "tokens",
        "scale": "group",
        "kl": {"coefficient": 0.04},
    },
)
