"""Configuration of a run: one section per stage, each defined beside its stage, filled in by a recipe.

Settings that several stages share are stated once: `engine`, `actors`, `images`, `columns`, `judge` and `seed`. The
section of a stage inherits what it leaves out (`Settings.inherits`), so the resolved configuration is complete.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from vlgenrm_ray import recipe
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.pool import HeldoutConfig, PoolConfig
from vlgenrm_ray.curation.preferences import PreferencesConfig
from vlgenrm_ray.curation.responses import ResponsesConfig
from vlgenrm_ray.curation.sources.rows import Columns
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import SHARD_MB
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.evaluation.benchmark_run import task_labels, tasks_of
from vlgenrm_ray.evaluation.benchmarks import BenchmarkConfig
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.reward.critiques import CritiquesConfig
from vlgenrm_ray.reward.rounds import RoundsConfig
from vlgenrm_ray.reward.selection import SelectionConfig
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.config import CanaryConfig, JudgeServingConfig, ServingConfig
from vlgenrm_ray.settings import RemovedSetting, Settings


class RunConfig(Settings):
    """Recipe of a reward-model run: curation, then rounds of critiques, selection, training and evaluation."""

    operational: ClassVar = frozenset({"max_dropped", "shard_mb"})
    inherits: ClassVar = {
        "engine.model": "base",
        "responses.generators.*.engine": "engine",
        "critiques.engine": "engine",
        "evaluation.engine": "engine",
        "serving.engine": "evaluation.engine",
        "training.image_processor": "critiques.engine.image_processor",
        "responses.generators.*.actors": "actors",
        "critiques.actors": "actors",
        "evaluation.actors": "actors",
        "serving.num_cpus": "evaluation.actors.num_cpus",
        "serving.num_gpus": "evaluation.actors.num_gpus",
        "pool.images": "images",
        "heldout.images": "images",
        "responses.images": "images",
        "experts.images": "images",
        "critiques.images": "images",
        "training.images": "images",
        "evaluation.images": "images",
        "serving.images": "evaluation.images",
        "pool.columns": "columns",
        "heldout.columns": "columns",
        "heldout.source": "pool.source",
        "serving.judge": "judge",
        "serving.experts": "experts",
        "pool.seed": "seed",
        "heldout.seed": "seed",
        "responses.seed": "seed",
        "preferences.seed": "seed",
    }

    base: str = Field(min_length=1)
    """GenRM to start from: a model folder, a Hugging Face hub name, or `pack:vlm`."""
    seed: int = Field(default=0, ge=0)
    """Seed of data, sampling of responses and pairs. `selection.seed` and `training.seed` are stated by themselves."""
    engine: VllmConfig = VllmConfig()
    """vLLM engine of responses, critiques, evaluation and serving. `engine.model` is `base` unless stated."""
    actors: ActorPoolConfig = ActorPoolConfig()
    """Ray actors that hold those engines: responses, critiques and evaluation, one stage at a time."""
    images: ImageLimits = ImageLimits()
    """Largest and smallest images that any stage accepts."""
    max_dropped: float = Field(default=MAX_DROPPED, ge=0.0, le=1.0)
    """Largest share of the rows of a stage that may be dropped because of a fault: `image_missing`,
    `image_unreachable`, `image_unreadable` or `engine_error`. With more, the stage stops. Up to 7 rows
    are allowed unless it is 0."""
    shard_mb: int = Field(default=SHARD_MB, ge=0)
    """Size in memory, in MB, up to which the files of a finished stage are merged; 0: one file for each block of rows,
    64 in most stages. Stages of at most 32 files stay as they are."""
    columns: Columns = Columns()
    """Column names of the data files, for `pool` and `heldout`."""
    judge: JudgeConfig = JudgeConfig()
    """Prompts and sampling of the GenRM, for critiques, evaluation and serving."""
    pool: PoolConfig
    """Images and questions to learn from."""
    heldout: HeldoutConfig
    """Labelled pairs for evaluation; never learned from."""
    responses: ResponsesConfig
    """Candidate responses to the questions of the pool."""
    experts: ExpertsConfig
    """Vision experts that check the claims of responses and critiques."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Preference pairs built from the experts' findings."""
    critiques: CritiquesConfig = CritiquesConfig()
    """Critiques of both sides of each pair, written by the round's GenRM."""
    selection: SelectionConfig = SelectionConfig()
    """Margin-based rejection sampling of critiques into training examples."""
    training: TrainingConfig
    """Fine-tuning of the GenRM on the selected examples."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Judging of the held-out pairs after each round."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks that the judge of each round is measured on, the base model included; see `vlgenrm benchmark`."""
    rounds: RoundsConfig = RoundsConfig()
    """Number of rounds and when to stop."""
    serving: ServingConfig = ServingConfig()
    """HTTP service of the GenRM (`vlgenrm serve`)."""

    @model_validator(mode="after")
    def _watches_a_benchmark_of_the_run(self) -> Self:
        labels = task_labels(tasks_of(self.benchmarks))
        if self.rounds.stop is not None and self.rounds.stop.metric not in labels:
            known = ", ".join(labels) or "none is listed"
            raise ValueError(
                f"rounds.stop.metric {self.rounds.stop.metric!r} is no benchmark of the recipe's benchmarks ({known}); "
                "add it there, or watch another one"
            )
        return self

    @property
    def trained_judge(self) -> JudgeConfig:
        """The judge that is trained and evaluated: discriminative with the objective `bradley_terry`."""
        return self.judge.with_kind("discriminative") if self.training.objective == "bradley_terry" else self.judge

    @model_validator(mode="after")
    def _pairs_are_trained_on_once(self) -> Self:
        if self.training.objective == "bradley_terry" and self.rounds.num_rounds > 1:
            raise ValueError(
                f"training.objective bradley_terry with rounds.num_rounds {self.rounds.num_rounds}: every round would "
                "train on the same pairs; set rounds.num_rounds to 1, and training.epochs for more passes"
            )
        return self

    @model_validator(mode="after")
    def _reject_equal_critiques(self) -> Self:
        if self.judge.temperature == 0.0 and (self.critiques.num_critiques or 1) > 1:
            raise ValueError(
                f"critiques.num_critiques {self.critiques.num_critiques} with judge.temperature 0: all critiques would "
                "be the same; set judge.temperature above 0"
            )
        return self


_MAX_RUN_QUEUE = 1 << 16
"""Most items under way in the judge service of a run: more than the rollouts of any step."""
_SERVE_INSTEAD = "a run serves its judge to itself alone; start a service with `vlgenrm serve` for this"


class RunServingConfig(JudgeServingConfig):
    """A judge served on 127.0.0.1 for one run, which is its only client."""

    removed: ClassVar = {
        "limits": RemovedSetting(
            {
                "max_body_mib": 64.0,
                "max_queue": 2048,
                "retry_after_s": 1,
                "deadline_s": 300.0,
                "cache_mib": 64.0,
                "images_mib": 512.0,
                "max_chunk": 16,
            },
            "the queue has room for every rollout of a run now; " + _SERVE_INSTEAD,
        ),
        "canary": RemovedSetting(
            {"image": "", "question": "", "better": [], "worse": [], "min_margin": 0.0, "min_change": 0.005},
            "the judge of a policy's run is never swapped; remove it",
        ),
        "experts": RemovedSetting(None, _SERVE_INSTEAD),
        "gateways": RemovedSetting([], _SERVE_INSTEAD),
        "image_roots": RemovedSetting([], _SERVE_INSTEAD),
        "tokens": RemovedSetting({"api": "", "operator": ""}, _SERVE_INSTEAD),
        "upscale_delay_s": RemovedSetting(10.0, _SERVE_INSTEAD),
        "downscale_delay_s": RemovedSetting(300.0, _SERVE_INSTEAD),
    }


class ManagedJudgeService(Settings):
    """A judge service that the run starts on this machine, and stops when it ends."""

    model: str = ""
    """GenRM to serve: a model folder, a hub name, or `pack:vlm`. Co-training sets it to each iteration's judge."""
    port: int = Field(default=8100, ge=1, lt=1 << 16)
    """TCP port on 127.0.0.1; a reward's `url` is then `http://127.0.0.1:<port>`."""
    serving: RunServingConfig = RunServingConfig()
    """Engine, judge and resources of the service."""

    def serving_config(self, model: str, tokens: ApiTokens) -> ServingConfig:
        """Return the configuration of the service with the model folder `model` and these tokens.

        Raises:
            ConfigError: The model is a pairwise judge, which can reward no rollout.
        """
        self.serving.judge.of_pointwise_model(Path(model))
        settings = self.serving.model_dump()
        engine = settings["engine"] | {"model": model}
        # The run waits for its rewards anyway, and requests those of one step at a time.
        limits = {"max_queue": _MAX_RUN_QUEUE}
        return ServingConfig.model_validate(settings | {"engine": engine, "limits": limits, "tokens": tokens})


class PolicyRunConfig(Settings):
    """Recipe of a policy's training by GRPO or PPO against one or more rewards."""

    renamed: ClassVar = {"service": "judge_service"}
    operational: ClassVar = frozenset({"max_dropped"})
    inherits: ClassVar = {
        "policy.rollouts.engine": "engine",
        "policy.rewards.*.judge.engine": "engine",
        "judge_service.serving.engine": "engine",
        "policy.rewards.*.judge.judge": "judge",
        "judge_service.serving.judge": "judge",
        "pool.images": "images",
        "heldout.images": "images",
        "policy.images": "images",
        "judge_service.serving.images": "images",
        "pool.columns": "columns",
        "heldout.columns": "columns",
        "heldout.source": "pool.source",
        "pool.seed": "seed",
        "heldout.seed": "seed",
        "policy.seed": "seed",
    }

    base: str = Field(min_length=1)
    """Policy to start from: a model folder, a Hugging Face hub name, or `pack:vlm`."""
    seed: int = Field(default=0, ge=0)
    """Seed of the data and of the training."""
    engine: VllmConfig = VllmConfig()
    """vLLM engine of rollouts and of judges that the run starts itself. Their models are set where they are used."""
    images: ImageLimits = ImageLimits()
    """Largest and smallest images that are accepted."""
    max_dropped: float = Field(default=MAX_DROPPED, ge=0.0, le=1.0)
    """Largest share of the rows of `pool` and `heldout` that may be dropped because of a fault: `image_missing`,
    `image_unreachable` or `image_unreadable`. With more, the run stops. Up to 7 rows are allowed
    unless it is 0."""
    shard_mb: int = Field(default=SHARD_MB, ge=0)
    """Size in memory, in MB, up to which the files of a finished stage are merged; 0: one file for each block of rows,
    64 in most stages. Stages of at most 32 files stay as they are."""
    columns: Columns = Columns()
    """Column names of the data files, for `pool` and `heldout`."""
    judge: JudgeConfig = JudgeConfig()
    """Prompts and sampling of judges that the run starts itself."""
    pool: PoolConfig
    """Images and questions to learn from."""
    heldout: PoolConfig
    """Images and questions for evaluation; never learned from."""
    judge_service: ManagedJudgeService | None = None
    """Judge served by the run itself. None: the rewards are served elsewhere, or are functions."""
    policy: PolicyConfig
    """Rewards, rollouts, algorithm and training."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks of answers (`pope`, `hallusionbench`, `amber`) that the trained policy is measured on at the end."""


class CoTrainingServingConfig(RunServingConfig):
    """A judge served on 127.0.0.1 for a co-training, which replaces it in every iteration."""

    canary: CanaryConfig = CanaryConfig()
    """Test that the judge of an iteration must pass before it replaces the previous one."""


class CoTrainingJudgeService(ManagedJudgeService):
    """The judge service of a co-training."""

    serving: CoTrainingServingConfig = CoTrainingServingConfig()
    """Engine, judge and canary of the service."""


class CoTrainingConfig(Settings):
    """Recipe of co-training: reward model and policy improve each other, iteration after iteration."""

    renamed: ClassVar = {"turns": "iterations", "service": "judge_service"}
    inherits: ClassVar = {
        "reward.base": "base",
        "reward.serving": "judge_service.serving",
        "policy.judge_service": "judge_service",
        "policy.base": "base",
        "reward.seed": "seed",
        "policy.seed": "seed",
        "reward.engine": "engine",
        "policy.engine": "engine",
        "judge_service.serving.engine": "engine",
        "reward.judge": "judge",
        "policy.judge": "judge",
        "judge_service.serving.judge": "judge",
        "reward.images": "images",
        "policy.images": "images",
        "judge_service.serving.images": "images",
        "reward.columns": "columns",
        "policy.columns": "columns",
    }

    iterations: int = Field(default=2, ge=1)
    """Iterations, each one a reward-model run followed by a training of the policy."""
    base: str = ""
    """Model that both the GenRM and the policy start from; `reward.base` and `policy.base` take precedence."""
    seed: int = Field(default=0, ge=0)
    """Seed of both runs."""
    engine: VllmConfig = VllmConfig()
    """vLLM engine of all stages of both runs, and of the judge service."""
    images: ImageLimits = ImageLimits()
    """Largest and smallest images that are accepted."""
    columns: Columns = Columns()
    """Column names of all data files."""
    judge: JudgeConfig = JudgeConfig()
    """Prompts and sampling of the GenRM, in its run and as a service."""
    judge_service: CoTrainingJudgeService
    """Service of each iteration's judge, which the policy learns from."""
    reward: RunConfig
    """Reward-model run of an iteration. The first generator of `responses` is the iteration's policy."""
    policy: PolicyRunConfig
    """Policy training of an iteration."""


def load(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read the recipe of a reward-model run. Raises ConfigError with one line per mistake."""
    return recipe.load(RunConfig, path, overrides)


def load_policy(path: Path, overrides: tuple[str, ...] = ()) -> PolicyRunConfig:
    """Read the recipe of a policy's training. Raises ConfigError with one line per mistake."""
    return recipe.load(PolicyRunConfig, path, overrides)


def load_co_training(path: Path, overrides: tuple[str, ...] = ()) -> CoTrainingConfig:
    """Read the recipe of a co-training. Raises ConfigError with one line per mistake."""
    return recipe.load(CoTrainingConfig, path, overrides)


def serving(config: RunConfig, **changes: Any) -> ServingConfig:
    """Return the section `serving` with `changes` to some of its settings. Raises ConfigError if they do not fit."""
    return recipe.build(ServingConfig, config.serving.model_dump(exclude_unset=True) | changes)
