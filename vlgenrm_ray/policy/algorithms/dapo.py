"""DAPO: decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476).

    A_i = (r_i - mean(r)) / std(r)                                         over the samples of a question
    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)       mean over all tokens of the step

Its four changes to GRPO: a wider upper clip (3.1), resampling of groups whose rewards are equal (3.2; here in at most
`resample_rounds` rounds per step), the mean over tokens (3.3), and a penalty on overlong responses (3.4; its length is
`overlong.buffer`). There is no KL penalty.
"""

from vlgenrm_ray.policy.advantages import group_relative_advantages
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.segments import segment_relative_advantages

DAPO = Algorithm(
    group_advantages=group_relative_advantages,
    segment_advantages=segment_relative_advantages,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.28,
        "ratio": "token",
        "normalise": "tokens",
        "scale": "group",
        "resample_rounds": 2,
        "overlong": {"handling": "penalty"},
        "kl": {"coefficient": 0.0},
    },
)
