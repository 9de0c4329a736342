"""Settings of the algorithm that turns rewards into a policy's loss."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlgenrm_ray.settings import Settings


class KlConfig(Settings):
    """The penalty for leaving the reference policy."""

    coefficient: float = Field(default=0.04, ge=0.0)
    """0 asks for no reference policy. GRPO's paper has 0.04; DAPO and Dr. GRPO, whose rewards are rules, have 0."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """See `policy/kl.py`."""
    where: Literal["loss", "reward"] = "loss"
    """A term of the loss of each token, or subtracted from each token's reward (PPO only)."""
    weighted: bool = True
    """Multiply the term in the loss by the ratio of new to old probability, which makes the gradient of k1 and k3 that
    of the reverse KL (DeepSeek-V3.2, arXiv 2512.02556). That of k2 is so already, and it never is multiplied."""

    @property
    def is_multiplied(self) -> bool:
        """Whether the term in the loss is multiplied by that ratio."""
        return self.weighted and self.estimator != "k2"

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if self.coefficient and self.where == "loss" and self.estimator == "k1" and not self.weighted:
            raise ValueError(
                "the gradient of an unweighted k1 in the loss is 0 on average; use weighted: true, k2 or k3"
            )
        return self


class ImportanceConfig(Settings):
    """Correction for an engine that samples by not quite the trainer's probabilities. See `policy/importance.py`."""

    level: Literal["token", "sequence"] = "token"
    """A weight for each token, or for each sequence the product over its tokens."""
    outside: Literal["truncate", "mask"] = "truncate"
    """What happens to a weight outside [low, high]: moved to the bound, or made 0."""
    low: float = Field(default=0.0, ge=0.0)
    high: float = Field(default=2.0, gt=0.0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class OverlongConfig(Settings):
    """What becomes of responses that come near the longest allowed, or were cut there."""

    handling: Literal["keep", "mask", "penalty"] = "keep"
    """Nothing; a response that was cut counts as unscored; or a penalty that grows with its length (both DAPO's)."""
    buffer: int = Field(default=16, ge=1)
    """`penalty`: it begins this many tokens before the longest allowed."""
    penalty: float = Field(default=1.0, gt=0.0)
    """`penalty`: what a response of the longest allowed loses, in units of reward."""


class PpoConfig(Settings):
    """What only PPO, which has a critic, asks for."""

    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount of a token's reward for each token before it."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """1: advantages of the whole return; 0: of one step (less variance, more trust in the critic)."""
    value_clip: float = Field(default=0.2, gt=0.0)
    """Farthest a value may move from the old one, within a step, and still be pulled on."""
    value_coefficient: float = Field(default=0.1, ge=0.0)
    """Weight of the critic's loss beside the policy's."""
    whiten: bool = True
    """Shift and scale the advantages of a step's tokens to mean 0 and variance 1."""


class AlgorithmConfig(Settings):
    """How rewards become advantages, and advantages a loss.

    The defaults are GRPO as DAPO changed it. The others, by their papers:

        GRPO     normalise: sequences, clip_high: 0.2
        Dr. GRPO normalise: constant, scale: none, kl.coefficient: 0
        GSPO     ratio: sequence, normalise: sequences, clip_low: 3e-4, clip_high: 4e-4
        PPO      algorithm: ppo, clip_high: 0.2, kl.where: reward, kl.estimator: k1
    """

    algorithm: Literal["grpo", "ppo"] = "grpo"
    """Advantages relative to the other samples of a question, or by a critic."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.28, gt=0.0)
    """A ratio below 1 - clip_low or above 1 + clip_high is pushed no farther. A `ratio: sequence` wants some 1e-4."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio of new to old probability: of each token, or the geometric mean over a sequence's tokens (GSPO)."""
    normalise: Literal["tokens", "sequences", "constant"] = "tokens"
    """The loss is the mean over a step's tokens (DAPO), or over its sequences, each its tokens' mean (GRPO), or the sum
    over the tokens divided by sequences x longest allowed (Dr. GRPO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """A reward's distance from its group's mean is divided by the standard deviation of its group (GRPO), of the whole
    step (arXiv 2508.08221), or not at all (Dr. GRPO)."""
    min_scored: int = Field(default=2, ge=2)
    """A group with fewer scored samples is left out: their mean says too little."""
    min_spread: float = Field(default=0.01, gt=0.0)
    """A group whose rewards' standard deviation is not above this is flat: its advantages are 0. A judge's rewards are
    never quite equal, and division by their spread would make much of its noise."""
    resample_rounds: int = Field(default=0, ge=0)
    """Times per step that flat groups and those left out are replaced by new ones (DAPO's dynamic sampling); GRPO only,
    for PPO learns from them as well."""
    entropy_coefficient: float = Field(default=0.0, ge=0.0)
    """Weight of a bonus for the entropy of each token's distribution."""
    kl: KlConfig = KlConfig()
    importance: ImportanceConfig | None = ImportanceConfig()
    """None: the engine's probabilities are taken for the trainer's."""
    overlong: OverlongConfig = OverlongConfig()
    ppo: PpoConfig = PpoConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.algorithm == "grpo" and self.kl.where == "reward":
            raise ValueError("kl.where: reward needs algorithm: ppo, for GRPO has no rewards of tokens; use loss")
        if self.algorithm == "ppo" and self.ratio == "sequence":
            raise ValueError("ratio: sequence needs algorithm: grpo, for PPO's advantages differ within a sequence")
        if self.algorithm == "ppo" and self.resample_rounds:
            raise ValueError("resample_rounds needs algorithm: grpo, for PPO learns from flat groups as well")
        return self
