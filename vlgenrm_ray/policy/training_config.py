"""Settings of a policy's training."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.guards import FailureRule, HackingRule, SightRule
from vlgenrm_ray.policy.reward import PatienceConfig, RewardConfig
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.policy.sync import SyncConfig, Way, way
from vlgenrm_ray.policy.trackers import TrackerName
from vlgenrm_ray.settings import Settings


class EvaluationConfig(Settings):
    """How the policy is measured while it learns, on questions it does not learn from."""

    every: int = Field(default=10, ge=1)
    """Steps between evaluations; one more comes before the first step, and one after the last."""
    measure: str = ""
    """`module:function` of (Question, response) -> float, higher is better: what the reward model never saw. Empty: the
    held-out reward takes its place, which cannot show reward hacking."""
    blank: int = Field(default=32, ge=0)
    """Answers that judges among the rewards are asked about once more, with a blank picture; 0 asks about none."""


class PolicyConfig(Settings):
    """How a policy learns from rewards."""

    algorithm: AlgorithmConfig = AlgorithmConfig()
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    patience: PatienceConfig = PatienceConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    sync: SyncConfig = SyncConfig()
    mode: Literal["synchronous", "one_step_off"] = "synchronous"
    """`one_step_off`: a step's samples are written while the one before is learnt, by weights one step old."""
    steps: int = Field(default=100, ge=1)
    questions_per_step: int = Field(default=32, ge=1)
    """Each with `rollouts.group_size` samples."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer steps that a step's samples are dealt out to."""
    tokens_per_batch: int = Field(default=8192, ge=16)
    """Padded tokens, image tokens included, of one micro-batch on one worker. A longer sample is left out, not cut."""
    engine: DeepSpeedConfig = DeepSpeedConfig(learning_rate=1e-6, schedule="constant")
    critic: DeepSpeedConfig = DeepSpeedConfig(learning_rate=5e-6, schedule="constant")
    """PPO only."""
    critic_warmup: int = Field(default=0, ge=0)
    """PPO: first steps in which the critic alone learns, so that the policy is not pushed by values of nothing."""
    workers: int = Field(default=1, ge=1)
    """Learning processes; each holds a replica of the model or, under ZeRO, its part of it."""
    num_cpus: int = Field(default=1, ge=1)
    """CPUs, hence threads, of each worker."""
    num_gpus: float = Field(default=0.0, ge=0.0, le=1.0)
    """GPUs of each worker: 1, or 0 to learn on the CPU; less than 1 shares it with an engine (`sync.transfer: ipc`)."""
    checkpoint_every: int = Field(default=10, ge=0)
    """Steps between checkpoints; 0 keeps none, and an interrupted run begins anew."""
    keep_checkpoints: int = Field(default=1, ge=1)
    retries: int = Field(default=3, ge=0)
    """Times a crashed group of workers, or a collector, is started again before the run stops."""
    evaluation: EvaluationConfig = EvaluationConfig()
    hacking: HackingRule | None = HackingRule()
    """None: a rising reward is always believed."""
    sight: SightRule = SightRule()
    failures: FailureRule = FailureRule()
    samples_every: int = Field(default=10, ge=1)
    """Steps between entries of `samples.jsonl`: one question with all its answers, critiques and rewards."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """`tensorboard`, `wandb`, `mlflow`: where steps, evaluations and samples are shown, beside the run's own files."""
    images: ImageLimits = ImageLimits()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _weights_find_a_way(self) -> Self:
        self.way()
        return self

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        """A run that is paid for and leaves the policy as it was is a mistake."""
        algorithm, group_size, longest = self.algorithm, self.rollouts.group_size, self.rollouts.max_tokens
        if algorithm.algorithm == "grpo" and group_size < algorithm.min_scored:
            raise ValueError(
                f"rollouts.group_size ({group_size}) is below algorithm.min_scored ({algorithm.min_scored}): every "
                "group would be left out; GRPO compares the samples of a question"
            )
        if self.critic_warmup and algorithm.algorithm != "ppo":
            raise ValueError("critic_warmup needs algorithm.algorithm: ppo, for GRPO has no critic")
        if self.critic_warmup >= self.steps:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) must be below steps ({self.steps}): until then the critic alone "
                "learns"
            )
        overlong = algorithm.overlong
        if overlong.handling == "penalty" and overlong.buffer > longest:
            raise ValueError(f"algorithm.overlong.buffer ({overlong.buffer}) is above rollouts.max_tokens ({longest})")
        return self

    def way(self) -> Way:
        """By which new weights come to the rollout engines."""
        return way(self.sync, self.rollouts, workers=self.workers, num_gpus=self.num_gpus)
