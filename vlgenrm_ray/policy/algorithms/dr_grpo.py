"""Dr. GRPO: GRPO without its length and difficulty biases (arXiv 2503.20783).

    A_i = r_i - mean(r)                                                    over the samples of a question
    loss = sum over tokens of -min(ratio A, clip(ratio) A), divided by sequences x longest response allowed

Without the division by std(r), questions that are nearly always or nearly never solved do not weigh more; with a
constant divisor, long wrong answers are not favoured. There is no KL penalty.
"""

from vlgenrm_ray.policy.advantages import group_relative_advantages
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.segments import segment_relative_advantages

DR_GRPO = Algorithm(
    group_advantages=group_relative_advantages,
    segment_advantages=segment_relative_advantages,
    defaults={
        "clip_low": 0.2,
        "clip_high": 0.2,
        "ratio": "token",
        "normalise": "constant",
        "scale": "none",
        "kl": {"coefficient": 0.0},
    },
)
