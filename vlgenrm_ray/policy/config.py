"""Settings of policy training: the section `policy` of a recipe.

`AlgorithmConfig` turns rewards into advantages and advantages into a loss; its defaults come from the named algorithm
(`policy/algorithms/`). `PolicyConfig` is the whole section.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.policy.algorithms import resolve_algorithm
from vlgenrm_ray.policy.guards import ImageAblationRule, RewardFailureRule, RewardHackingRule
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.policy.trackers import TrackerName
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.settings import RemovedSetting, Settings
from vlgenrm_ray.weight_sync.config import SyncBackend, SyncConfig, resolve_backend

_DECODING_PARTS = 4
"""Parts of a run after each of which ways of decoding are compared; a comparison takes k samples per question."""


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with missing keys filled in from `defaults`, section by section."""
    merged = {**defaults, **values}
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(values.get(name), Mapping):
            merged[name] = _merge(default, values[name])
    return merged


class KlConfig(Settings):
    """KL penalty for deviating from the reference policy, which is the policy at the start of the run."""

    coefficient: float = Field(default=0.04, ge=0.0)
    """Weight of the penalty; 0 needs no reference policy. GRPO's paper uses 0.04; DAPO and Dr. GRPO use 0. For `dpo`
    and `mdpo` it is their beta, above 0: the smaller, the farther the policy may move from the reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator per token; see `losses.estimate_kl`."""
    where: Literal["loss", "reward"] = "loss"
    """Add the penalty to the loss of each token, or subtract it from the reward of each token (`ppo` and
    `reinforce_plus_plus`)."""
    weighted: bool = True
    """Multiply the term in the loss by the ratio of new to old probability, which makes the gradient of k1 and k3 that
    of the reverse KL (DeepSeek-V3.2, arXiv 2512.02556). k2 has this gradient without it and is never multiplied."""

    @property
    def is_multiplied(self) -> bool:
        """True if the term in the loss is multiplied by the ratio."""
        return self.weighted and self.estimator != "k2"

    @model_validator(mode="after")
    def _check_gradient(self) -> Self:
        if self.coefficient and self.where == "loss" and self.estimator == "k1" and not self.weighted:
            raise ValueError(
                "the gradient of an unweighted k1 in the loss is 0 on average; use weighted: true, k2 or k3"
            )
        return self


class ImportanceConfig(Settings):
    """Weights that correct for an engine whose probabilities differ from the trainer's."""

    level: Literal["token", "sequence"] = "token"
    """One weight per token, or one per sequence: the product over its tokens."""
    outside: Literal["truncate", "mask"] = "truncate"
    """Treatment of a weight outside [low, high]: move it to the bound, or set it to 0."""
    low: float = Field(default=0.0, ge=0.0)
    """Smallest weight."""
    high: float = Field(default=2.0, gt=0.0)
    """Largest weight."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class OverlongConfig(Settings):
    """Treatment of responses that reach, or nearly reach, `rollouts.max_tokens` (DAPO, arXiv 2503.14476, 3.4)."""

    handling: Literal["keep", "mask", "penalty"] = "keep"
    """`keep`: no change. `mask`: a truncated response counts as unscored. `penalty`: subtract a penalty that grows with
    the length."""
    buffer: int = Field(default=16, ge=1)
    """`penalty`: number of tokens before the limit at which the penalty begins."""
    penalty: float = Field(default=1.0, gt=0.0)
    """`penalty`: largest penalty, reached at the limit, in units of reward."""


class PpoConfig(Settings):
    """Settings of algorithms with a critic."""

    removed: ClassVar = {
        "value_coefficient": RemovedSetting(0.1, "the critic has an optimizer of its own; set critic.learning_rate"),
        "whiten": RemovedSetting(True, "advantages always have mean 0 and variance 1 within a step"),
    }

    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount factor per token."""
    gae_lambda: float = Field(default=0.95, ge=0.0, le=1.0)
    """Lambda of GAE. 1: advantages of the whole return; 0: one-step advantages (less variance, more bias)."""
    value_clip: float = Field(default=0.2, gt=0.0)
    """Largest distance between a new and an old value within a step that still has a gradient."""


class AlgorithmConfig(Settings):
    """The training algorithm: how rewards become advantages, and advantages a loss.

    `algorithm` picks a named algorithm, whose file in `policy/algorithms/` lists the defaults it sets. A setting that
    is given here takes precedence over them.
    """

    renamed: ClassVar[Mapping[str, str]] = {"min_spread": "min_std"}

    algorithm: str = "grpo"
    """`grpo`, `dr_grpo`, `gspo`, `dapo`, `rloo`, `reinforce_plus_plus`, `reinforce_plus_plus_baseline`, `ppo`, `raft`;
    offline, on the preference pairs of the pool: `dpo`, `mdpo`; or the import path `package.module:NAME` of an
    `Algorithm`."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Ratios below 1 - clip_low have no gradient that lowers them further."""
    clip_high: float = Field(default=0.28, gt=0.0)
    """Ratios above 1 + clip_high have no gradient that raises them further."""
    ratio: Literal["token", "sequence"] = "token"
    """Ratio of new to old probability: of each token, or the geometric mean over a sequence's tokens (GSPO)."""
    normalise: Literal["tokens", "sequences", "constant"] = "tokens"
    """Aggregation of the loss over a step: `tokens`: mean over tokens (DAPO). `sequences`: mean over sequences of their
    mean over tokens (GRPO). `constant`: sum over tokens divided by sequences x `rollouts.max_tokens` (Dr. GRPO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Divisor of a reward's distance from its group's mean: the standard deviation of the group (GRPO), of the whole
    step (arXiv 2508.08221), or 1 (Dr. GRPO)."""
    min_scored: int = Field(default=2, ge=2)
    """Smallest number of scored samples in a group; groups with fewer are not used."""
    min_std: float = Field(default=0.01, gt=0.0)
    """Groups whose rewards have a standard deviation of at most this get advantages of 0: the rewards of a judge are
    never exactly equal, and division by a tiny deviation would amplify its noise."""
    resample_rounds: int = Field(default=0, ge=0)
    """Rounds per step in which groups without a gradient are replaced by groups of further questions (DAPO's dynamic
    sampling). Not for algorithms with a critic, which use all groups."""
    entropy_coefficient: float = Field(default=0.0, ge=0.0)
    """Weight of a bonus for the entropy of each token's distribution."""
    kl: KlConfig = KlConfig()
    """Penalty for divergence from the reference model."""
    importance: ImportanceConfig | None = ImportanceConfig()
    """Correction for engines whose probabilities differ from the trainer's. None: none; they are taken as equal."""
    overlong: OverlongConfig = OverlongConfig()
    """Treatment of responses that reach the length limit."""
    ppo: PpoConfig = PpoConfig()
    """Settings of algorithms with a critic."""

    @property
    def uses_critic(self) -> bool:
        """True if advantages come from a critic instead of the rewards of a group."""
        return resolve_algorithm(self.algorithm).uses_critic

    @property
    def is_offline(self) -> bool:
        """True if the algorithm learns from preference pairs instead of rollouts."""
        return resolve_algorithm(self.algorithm).is_offline

    @property
    def needs_reference(self) -> bool:
        """True if the weights at the start of the run are needed beside the present ones."""
        return self.kl.coefficient > 0

    @model_validator(mode="before")
    @classmethod
    def _apply_algorithm_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("algorithm", cls.model_fields["algorithm"].default)
        # A value of another type is refused by the field itself, with a better message.
        return _merge(resolve_algorithm(name).defaults, values) if isinstance(name, str) else values

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        algorithm = resolve_algorithm(self.algorithm)
        gives_token_advantages = self.uses_critic or algorithm.whiten
        if not gives_token_advantages and self.kl.where == "reward":
            raise ValueError(
                f"kl.where: reward needs advantages of tokens, which algorithm: {self.algorithm} has not; use "
                "algorithm: ppo or reinforce_plus_plus, or kl.where: loss"
            )
        if self.is_offline and not self.kl.coefficient:
            raise ValueError(f"kl.coefficient is the beta of algorithm: {self.algorithm}; give a number above 0")
        if gives_token_advantages and self.ratio == "sequence":
            raise ValueError(
                "ratio: sequence needs one advantage per sequence, but the advantages of algorithm: "
                f"{self.algorithm} differ within a sequence; use ratio: token or algorithm: gspo"
            )
        if self.uses_critic and self.resample_rounds:
            raise ValueError(
                f"resample_rounds replaces zero_std groups, which algorithm: {self.algorithm} uses; set it to 0"
            )
        return self


class PolicyEvaluationConfig(Settings):
    """Evaluation of the policy during training, on held-out questions."""

    renamed: ClassVar[Mapping[str, str]] = {"blank": "num_image_ablations"}

    every: int = Field(default=10, ge=1)
    """Steps between evaluations. One more runs before the first step and one after the last."""
    measure: str = ""
    """`module:function` of (Question, response) -> float, higher is better: a measure that the reward model never saw.
    Empty: the held-out reward is used instead, which cannot reveal reward hacking; for offline algorithms without a
    reward, the share of held-out pairs whose chosen response has gained more probability than the rejected one."""
    num_samples: int = Field(default=16, ge=0)
    """k of the comparison of decoding, at five evaluations from the first step to the last: the greedy answer to each
    held-out question against k sampled ones (mean, majority vote, any right). Needs `measure`; 0: none."""
    num_image_ablations: int = Field(default=32, ge=0)
    """Answers per evaluation that the judges among the rewards score a second time, with a blank image; 0: none."""

    def compares_decoding(self, step: int, num_steps: int) -> bool:
        """Return True if ways of decoding are compared at the evaluation after `step` of `num_steps` steps.

        They are compared at the first and the last evaluation, and at three between them.
        """
        if not (self.measure and self.num_samples):
            return False
        evaluated = [*range(0, num_steps, self.every), num_steps]
        last = len(evaluated) - 1
        return step in {evaluated[last * part // _DECODING_PARTS] for part in range(_DECODING_PARTS + 1)}


class PolicyConfig(Settings):
    """Training of a policy against its rewards."""

    renamed: ClassVar[Mapping[str, str]] = {
        "sight": "image_ablation",
        "hacking": "reward_hacking",
        "failures": "reward_failures",
        "patience": "reward_retry",
    }
    removed: ClassVar = {"keep_checkpoints": RemovedSetting(1, "a run resumes from the newest; copy one to keep it")}
    inherits: ClassVar[Mapping[str, str]] = {
        "critic": "engine",
        "rollouts.max_restarts": "retries",
        "image_ablation.window": "reward_hacking.window",
        "image_ablation.min_rise": "reward_hacking.min_rise",
    }

    operational: ClassVar = frozenset(
        {"num_cpus", "num_gpus", "checkpoint_every", "retries", "reward_retry", "samples_every", "trackers"}
    )

    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Advantages and loss."""
    rewards: tuple[RewardConfig, ...] = ()
    """Rewards of a rollout; the policy is trained on their weighted sum. One at least, except for offline algorithms,
    for which they only evaluate."""
    reward_retry: RetryConfig = RetryConfig()
    """Time to wait for a reward that is unavailable."""
    rollouts: RolloutsConfig = RolloutsConfig()
    """Rollout engines and sampling."""
    sync: SyncConfig = SyncConfig()
    """Transfer of new weights to the rollout engines."""
    mode: Literal["synchronous", "one_step_off"] = "synchronous"
    """`one_step_off`: sample the next step while the present one is learned; its weights are one step old."""
    steps: int = Field(default=100, ge=1)
    """Training steps."""
    questions_per_step: int = Field(default=32, ge=1)
    """Questions per step, each with `rollouts.group_size` samples; for offline algorithms, preference pairs."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer steps that the samples of a step are divided into."""
    tokens_per_batch: int = Field(default=8192, ge=16)
    """Padded tokens, image tokens included, of one micro-batch on one worker. Longer samples are skipped, not cut."""
    engine: DeepSpeedConfig = DeepSpeedConfig(learning_rate=1e-6, schedule="constant")
    """Training engine of the policy."""
    critic: DeepSpeedConfig = DeepSpeedConfig(learning_rate=5e-6, schedule="constant")
    """Training engine of the critic, for algorithms with one. By default as `engine`, except for learning rate and
    schedule."""
    critic_warmup: int = Field(default=0, ge=0)
    """First steps in which only the critic is trained, so that the policy does not follow untrained values."""
    workers: int = Field(default=1, ge=1)
    """Trainer processes; each holds a replica of the model or, with ZeRO, a shard of it."""
    num_cpus: int = Field(default=1, ge=1)
    """CPUs, and threads, of each worker."""
    num_gpus: float = Field(default=0.0, ge=0.0, le=1.0)
    """GPUs of each worker: 1, or 0 to train on CPUs; less than 1 shares a GPU with an engine (`sync.transfer: ipc`)."""
    checkpoint_every: int = Field(default=10, ge=0)
    """Steps between checkpoints; 0 writes none, and an interrupted run starts over."""
    retries: int = Field(default=3, ge=0)
    """Restarts of a crashed group of workers, or of a lost rollout actor, before the run stops."""
    evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig()
    """Evaluation on held-out questions during the training."""
    reward_hacking: RewardHackingRule | None = RewardHackingRule()
    """Rule by which a hacked reward stops the run. None: never."""
    image_ablation: ImageAblationRule = ImageAblationRule()
    """Rule about the part of the reward that depends on the image."""
    reward_failures: RewardFailureRule = RewardFailureRule()
    """Rule about samples without a reward."""
    samples_every: int = Field(default=10, ge=1)
    """Steps between entries of `samples.jsonl`: one question with all its answers, critiques and rewards."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Experiment trackers that get steps, evaluations and samples in addition to the files of the run."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, shuffling and initialisation."""

    @model_validator(mode="after")
    def _check_weight_sync(self) -> Self:
        self.sync_backend()
        return self

    @model_validator(mode="after")
    def _check_source_of_learning(self) -> Self:
        """Refuse an online algorithm without rewards, and settings of rollouts for an offline one."""
        algorithm = self.algorithm
        if not (self.rewards or algorithm.is_offline):
            raise ValueError(
                f"rewards: algorithm {algorithm.algorithm} learns from rewards; name at least one, by url, handle, "
                "judge or function"
            )
        claim_level = [reward.name for reward in self.rewards if reward.granularity == "claim"]
        if claim_level and not (resolve_algorithm(algorithm.algorithm).supports_segments or algorithm.is_offline):
            raise ValueError(
                f"granularity: claim of reward {claim_level[0]} needs an algorithm with advantages of segments, which "
                f"{algorithm.algorithm} has not; use grpo, dr_grpo, dapo or ppo, or granularity: response"
            )
        if algorithm.is_offline and self.mode != "synchronous":
            raise ValueError(
                f"mode: {self.mode} is about rollouts, which algorithm: {algorithm.algorithm} has not; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_policy_is_trained(self) -> Self:
        """Refuse settings with which the policy would never change."""
        algorithm, group_size, max_tokens = self.algorithm, self.rollouts.group_size, self.rollouts.max_tokens
        compares_samples = resolve_algorithm(algorithm.algorithm).min_group_size > 1 and not algorithm.is_offline
        if compares_samples and group_size < algorithm.min_scored:
            raise ValueError(
                f"rollouts.group_size ({group_size}) is below algorithm.min_scored ({algorithm.min_scored}): no group "
                f"would be used, because algorithm: {algorithm.algorithm} compares the samples of a question; raise "
                "rollouts.group_size"
            )
        if self.critic_warmup and not algorithm.uses_critic:
            raise ValueError(
                f"critic_warmup needs algorithm.algorithm: ppo; {algorithm.algorithm} has no critic; set it to 0"
            )
        if self.critic_warmup >= self.steps:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) must be below steps ({self.steps}): only the critic is trained "
                "until then"
            )
        overlong = algorithm.overlong
        if overlong.handling == "penalty" and overlong.buffer > max_tokens:
            raise ValueError(
                f"algorithm.overlong.buffer ({overlong.buffer}) is above rollouts.max_tokens ({max_tokens}); lower it"
            )
        return self

    @property
    def uses_engines(self) -> bool:
        """True if the run needs rollout engines: to train, or to answer held-out questions."""
        return not self.algorithm.is_offline or bool(self.rewards or self.evaluation.measure)

    def sync_backend(self) -> SyncBackend:
        """Return the transport of new weights to the rollout engines. Raises ValueError if the GPUs do not allow it."""
        rollouts = self.rollouts
        return resolve_backend(
            self.sync,
            num_workers=self.workers,
            worker_gpus=self.num_gpus,
            num_engines=rollouts.num_engines,
            engine_gpus=rollouts.num_gpus,
            tensor_parallel_size=rollouts.engine.tensor_parallel_size,
        )
