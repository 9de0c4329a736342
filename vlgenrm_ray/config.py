"""A run's configuration: one section a stage, each defined beside its stage. A recipe file fills it in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from vlgenrm_ray import recipe
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.preferences import PreferencesConfig
from vlgenrm_ray.curation.responses import ResponsesConfig
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.reward.critiques import CritiquesConfig
from vlgenrm_ray.reward.rounds import RoundsConfig
from vlgenrm_ray.reward.selection import SelectionConfig
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.settings import Settings


class RunConfig(Settings):
    """Everything a run is decided by, apart from its folder."""

    base: str
    """The GenRM to start from: a model folder, a hub name, or `pack:vlm`."""
    seed: int = Field(default=0, ge=0)
    """Seed of every stage that names none of its own."""
    pool: PoolConfig
    """Images and questions to learn from."""
    heldout: PoolConfig
    """Labelled pairs to measure on; never learned from."""
    responses: ResponsesConfig
    experts: ExpertsConfig
    preferences: PreferencesConfig = PreferencesConfig()
    judge: JudgeConfig = JudgeConfig()
    """How the GenRM is asked, for critiques and evaluation alike."""
    critiques: CritiquesConfig
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig
    rounds: RoundsConfig = RoundsConfig()
    serving: ServingConfig = ServingConfig()
    """What it leaves out, also of its own sections, is as in the sections `judge` and `evaluation`."""

    @model_validator(mode="after")
    def _several_critiques_need_chance(self) -> Self:
        if self.judge.temperature == 0.0 and (self.critiques.num_critiques or 1) > 1:
            raise ValueError(
                f"critiques.num_critiques {self.critiques.num_critiques} with judge.temperature 0: all critiques would "
                "be the same; set judge.temperature above 0"
            )
        return self


class ManagedJudgeService(Settings):
    """A judge that a policy's run serves for itself, as long as it lasts."""

    model: str = ""
    """The GenRM: a model folder, a hub name, or `pack:vlm`. Co-training sets the judge of its iteration."""
    port: int = Field(default=8100, ge=1, lt=1 << 16)
    """On this machine alone: a reward's `url` is then `http://127.0.0.1:<port>`."""
    serving: ServingConfig = ServingConfig()


class PolicyRunConfig(Settings):
    """Everything the training of a policy is decided by, apart from its folder."""

    base: str
    """The policy to start from: a model folder, a hub name, or `pack:vlm`."""
    seed: int = Field(default=0, ge=0)
    """Of the pools and the training that name none of their own."""
    pool: PoolConfig
    """Images and questions to learn from."""
    heldout: PoolConfig
    """Images and questions to measure on; never learned from."""
    service: ManagedJudgeService | None = None
    """None: the rewards are served already, or are functions."""
    policy: PolicyConfig


class CoTrainingConfig(Settings):
    """Everything that decides a co-training run, apart from its folder."""

    renamed: ClassVar[Mapping[str, str]] = {"turns": "iterations"}

    iterations: int = Field(default=2, ge=1)
    """Number of iterations; each trains the reward model, then the policy."""
    service: ManagedJudgeService
    """Service of the current judge."""
    reward: RunConfig
    """Training of the GenRM; the first generator of `responses` is replaced by the current policy."""
    policy: PolicyRunConfig
    """Training of the policy."""


def load(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe. Raises ConfigError with one line per mistake."""
    return recipe.load(RunConfig, path, overrides)


def load_policy(path: Path, overrides: tuple[str, ...] = ()) -> PolicyRunConfig:
    """Read a recipe of a policy's training. Raises ConfigError with one line per mistake."""
    return recipe.load(PolicyRunConfig, path, overrides)


def load_co_training(path: Path, overrides: tuple[str, ...] = ()) -> CoTrainingConfig:
    """Read a co-training recipe. Raises ConfigError with one line per mistake."""
    return recipe.load(CoTrainingConfig, path, overrides)


def serving(settings: RunConfig, **changes: Any) -> ServingConfig:
    """How a recipe's judge is served, with `changes` on top. Raises ConfigError where they do not agree."""
    evaluation = settings.evaluation
    inherited: dict[str, Any] = {
        "engine": evaluation.engine,
        "judge": settings.judge,
        "images": evaluation.limits,
        "num_cpus": evaluation.pool.num_cpus,
        "num_gpus": evaluation.pool.num_gpus,
    }
    stated = {
        name: _over(inherited.get(name), getattr(settings.serving, name)) for name in settings.serving.model_fields_set
    }
    return ServingConfig.model_validate(inherited | stated | changes)


def _over(inherited: Any, stated: Any) -> Any:
    """What is stated; of a section, the settings it leaves out are inherited."""
    if not isinstance(inherited, Settings):
        return stated
    return recipe.build(type(stated), inherited.model_dump() | stated.model_dump(include=stated.model_fields_set))
