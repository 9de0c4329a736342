"""GSPO: group sequence policy optimization (arXiv 2507.18071).

    A_i = (r_i - mean(r)) / std(r)                                         over the samples of a question
    ratio_i = exp(mean over tokens of (log p_new - log p_old))             one for all tokens of a sequence
    loss = -min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)       mean over sequences

The ratio of a sequence varies far less than that of a token, hence the narrow clip (section 5.1 of the paper).
"""

from vlgenrm_ray.policy.advantages import group_relative_advantages
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm

GSPO = Algorithm(
    group_advantages=group_relative_advantages,
    defaults={
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "ratio": "sequence",
        "normalise": "sequences",
        "scale": "group",
        "kl": {"coefficient": 0.04},
    },
)
