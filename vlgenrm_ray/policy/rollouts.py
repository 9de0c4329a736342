"""Rollouts of a policy: settings, requests, groups, batches, and the schedule of questions.

A request asks for the group of one question: `group_size` rollouts that share its prompt. All groups of a step are a
`RolloutBatch`. Requests are made by `orchestrator.RolloutCollector` and sampled by `rollout_worker.RolloutWorker`.
"""

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import Field

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.vllm_config import RolloutVllmConfig, VllmConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards.image_ablation import AblationResult
from vlgenrm_ray.settings import Settings

UNSCORED = "unscored"
"""Status of a rollout that was sampled and has not been scored yet."""

RolloutGroup = tuple[Rollout, ...]
"""The rollouts of one question."""


class RolloutsConfig(Settings):
    """The rollout engines, and how they sample."""

    renamed: ClassVar = {"actors": "num_engines", "restarts": "max_restarts"}

    operational: ClassVar = frozenset(
        {"num_engines", "num_cpus", "num_gpus", "max_restarts", "start_timeout_s", "stall_timeout_s"}
    )

    engine: VllmConfig = VllmConfig()
    """Settings of vLLM. The run sets `model`."""
    num_engines: int = Field(default=1, ge=1)
    """Rollout engines, each with a copy of the policy."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    """CPUs (hence threads) of each engine."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each engine."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts per question. They share the prefill of the prompt."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Sampling temperature of rollouts to train on."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling of rollouts to train on: only the likeliest tokens that together have this probability are
    sampled. What is cut off cannot be reinforced, in particular odd texts that a judge happens to like. The mismatch
    shows in the importance weights, because the engine's log-probabilities are those of the truncated distribution."""
    evaluation_temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature of the answers to held-out questions, one per question; 0: greedy."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest response in tokens, the end of turn included."""
    max_restarts: int = Field(default=3, ge=0)
    """Times in a row that a lost engine is restarted without having finished a group, before the run stops.
    By default as `policy.retries`."""
    start_timeout_s: float = Field(default=900.0, gt=0.0)
    """Seconds that an engine may take to start."""
    stall_timeout_s: float = Field(default=900.0, gt=0.0)
    """Seconds that an engine with requests may take to finish the next group. A slower engine counts as lost."""

    def training_sampling(self) -> Sampling:
        """Return the sampling parameters of rollouts to train on."""
        return Sampling(
            n=self.group_size,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            logprobs=True,
        )

    def evaluation_sampling(self) -> Sampling:
        """Return the sampling parameters of answers to held-out questions."""
        return Sampling(n=1, temperature=self.evaluation_temperature, max_tokens=self.max_tokens, logprobs=True)

    def decoding_samplings(self, num_samples: int) -> tuple[Sampling, Sampling]:
        """Return the sampling parameters of the greedy answer and of `num_samples` answers at temperature 1."""
        greedy = Sampling(n=1, temperature=0.0, max_tokens=self.max_tokens, logprobs=True)
        return greedy, replace(greedy, n=num_samples, temperature=1.0)

    def engine_config(self, model: str) -> RolloutVllmConfig:
        """Return the settings of an engine that samples from the model folder `model`."""
        return RolloutVllmConfig.model_validate(self.engine.model_dump() | {"model": model})


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """A request for the rollouts of one question."""

    question: Question
    step: int
    """Training step, from 0; for an evaluation the number of steps done."""
    seed: int
    """Sampling seed, in [0, 2^31)."""
    purpose: str = "s"
    """Letter before the step in the rollout's id: `s` for a training step, `e` for an evaluation."""

    def rollout_id(self, index: int) -> str:
        """Return the id of the rollout with this index in its group."""
        return f"{self.question.id}/{self.purpose}{self.step}/r{index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingBatch:
    """Answers to the held-out questions by two ways of decoding, without rewards."""

    greedy: tuple[RolloutGroup, ...]
    """One answer per question."""
    sampled: tuple[RolloutGroup, ...]
    """k answers per question at temperature 1, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """The scored rollouts of one training step, or of one evaluation."""

    step: int
    groups: tuple[RolloutGroup, ...]
    """Groups in the order of their requests. A group that was replaced is not among them."""
    statuses: Mapping[str, int]
    """Number of rollouts of each status (`ok`: has a reward), those of replaced groups included."""
    num_replaced: int
    """Groups that were replaced by others because they gave no gradient."""
    sampling_s: float
    """Seconds until the last group was sampled."""
    scoring_s: float
    """Seconds from then until the last reward arrived."""
    failure_details: Mapping[str, str] = field(default_factory=dict)
    """Status of failed rewards -> explanation of the first rollout with that status."""
    ablations: tuple[AblationResult, ...] = ()
    """Evaluations only: some of the answers, scored with blank images as well."""

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The rollouts of all groups, in order."""
        return tuple(rollout for group in self.groups for rollout in group)


NO_ROLLOUTS = RolloutBatch(step=0, groups=(), statuses={}, num_replaced=0, sampling_s=0.0, scoring_s=0.0)
"""The batch of a run without engines."""


# -- schedule ----------------------------------------------------------------------------------------------------------
# Functions of (seed, step) alone, so that a resumed run continues with the same questions and seeds.


def step_indices(num_questions: int, per_step: int, *, seed: int, step: int) -> list[int]:
    """Return the indices of the questions of a step.

    Every epoch visits the questions in a new order. The rest of an epoch that would not fill a step is dropped, so that
    no step has a question twice.

    Args:
        num_questions: Number of questions to train on.
        per_step: Questions per step.
        seed: Seed of the run.
        step: Step, from 0.

    Raises:
        ConfigError: There are fewer questions than a step needs.
    """
    if num_questions < per_step:
        raise ConfigError(
            f"questions_per_step is {per_step}, and the pool has {num_questions} questions; lower it, or use a larger "
            "pool"
        )
    epoch, part = divmod(step, num_questions // per_step)
    indices = _shuffle(list(range(num_questions)), f"{seed}/pass {epoch}")
    return indices[part * per_step : (part + 1) * per_step]


def replacement_indices(num_questions: int, per_step: int, *, seed: int, step: int) -> list[int]:
    """Return the indices of all questions that are not in the step, in the order of their use as replacements."""
    used = set(step_indices(num_questions, per_step, seed=seed, step=step))
    return _shuffle([index for index in range(num_questions) if index not in used], f"{seed}/instead {step}")


def sampling_seed(seed: int, step: int, question_id: str) -> int:
    """Return the sampling seed of a question at a step, in [0, 2^31): the same on every engine and after a restart."""
    digest = hashlib.sha256(f"{seed}/{step}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _shuffle(indices: list[int], seed: str) -> list[int]:
    random.Random(seed).shuffle(indices)
    return indices
