"""Reward-model pipeline: every stage of a run, in order. Each stage is resumable, and therefore the run is.

pool -> responses -> experts -> preferences              heldout-pool -> heldout
    then, for round 1 ... T:  critiques -> selection -> training -> evaluation
    for a discriminative judge (`training.objective: bradley_terry`):  training -> evaluation

<run>/config.yaml                     the resolved configuration
<run>/<stage>/                        see data/store.py
<run>/round-<t>/<stage>/, lineage.json
<run>/round-<t>/benchmarks/           results of the recipe's benchmarks, and the replies behind them
<run>/quality.json                    quality of experts and labels, where the ground truth is known
<run>/summary.json, best.json, best   the best round's model, by held-out accuracy
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlgenrm_ray import recipe
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.curation import experts, pool, preferences, responses
from vlgenrm_ray.data import lease
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.engines import model_families, model_folder
from vlgenrm_ray.evaluation import benchmark_run, evidence_quality, heldout, pairs
from vlgenrm_ray.evaluation.metrics import estimate_as_json
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import CheckedResponse, Preference
from vlgenrm_ray.report.lineage import round_lineage
from vlgenrm_ray.report.summary import run_summary
from vlgenrm_ray.reward import critiques, rounds, selection, training
from vlgenrm_ray.reward.rounds import RoundResult, RoundStages
from vlgenrm_ray.reward.training import TrainingResult
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker

PreparationStage = Literal["pool", "responses", "experts", "preferences", "heldout-pool", "heldout"]
"""Stages before the first round, in their order."""


@dataclass(frozen=True, slots=True)
class RewardRun:
    """A run folder with the configuration that fills it."""

    config: RunConfig
    folder: Path

    def stage(self, name: str) -> StageFolder:
        """Return the folder of a stage before the first round."""
        return StageFolder(self.folder / name, shard_mb=self.config.shard_mb)


def run(
    config: RunConfig,
    folder: Path,
    *,
    on_round: Callable[[RoundResult], None] = lambda result: None,
    until: PreparationStage | None = None,
) -> dict[str, Any]:
    """Execute the run in `folder`, or continue it where it stopped.

    Args:
        config: Configuration of the run.
        folder: Run folder, on a file system that all nodes share.
        on_round: Called with each finished round.
        until: Last stage to run, of those before the first round. None: the whole run.

    Returns:
        The content of `summary.json`.

    Raises:
        VlGenRMError: See `errors.py`. Finished work stays on disk, and the same call continues from it.
    """
    reward_run = RewardRun(config, folder.absolute())
    reward_run.stage("pool").check_format()
    with lease.hold(reward_run.folder):
        recipe.claim(config, reward_run.folder)
        return _run_stages(reward_run, on_round, until)


def _run_stages(
    reward_run: RewardRun, on_round: Callable[[RoundResult], None], until: PreparationStage | None
) -> dict[str, Any]:
    config, started_at = reward_run.config, time.monotonic()
    benchmark_run.check_tasks(benchmark_run.tasks_of(config.benchmarks), benchmark_run.judge_role(config.judge))
    earlier_seconds = _earlier_seconds(reward_run)
    if until is None:
        _check_base(reward_run)
    prepared = prepare(reward_run, until)
    results: list[RoundResult] = []
    if until is not None:
        seconds = earlier_seconds + time.monotonic() - started_at
        summary = run_summary(config.seed, seconds, results, prepared, {}) | {"until": until}
        write_json(reward_run.folder / "summary.json", summary)
        return summary
    for result in improve(reward_run):
        results.append(result)
        write_json(reward_run.folder / f"round-{result.round}" / "lineage.json", round_lineage(result, prepared))
        _link_best(reward_run, rounds.best_round(results))
        seconds = earlier_seconds + time.monotonic() - started_at
        summary = run_summary(config.seed, seconds, results, prepared, _gains(reward_run, results))
        write_json(reward_run.folder / "summary.json", summary)
        on_round(result)
    summary = read_json(reward_run.folder / "summary.json") | {"finished": True}
    write_json(reward_run.folder / "summary.json", summary)
    return summary


def prepare(run: RewardRun, until: PreparationStage | None = None) -> dict[str, Manifest]:
    """Run the stages before the first round: from images and questions to preferences, and the held-out pairs.

    Args:
        run: The run.
        until: Last stage to run; None: all.

    Returns:
        Stage -> its manifest, in order.
    """
    config, stage = run.config, run.stage
    stages: dict[PreparationStage, Callable[[], Manifest]] = {
        "pool": lambda: pool.run(config.pool, target=stage("pool"), seed=config.seed, max_dropped=config.max_dropped),
        "responses": lambda: responses.run(
            config.responses,
            seed=config.seed,
            source=stage("pool"),
            target=stage("responses"),
            max_dropped=config.max_dropped,
        ),
        "experts": lambda: experts.run(
            config.experts,
            source=stage("responses"),
            target=stage("experts"),
            recipe_benchmarks=_benchmark_images(config),
            max_dropped=config.max_dropped,
        ),
        "preferences": lambda: preferences.run(
            config.preferences,
            experts=config.experts,
            seed=config.seed,
            source=stage("experts"),
            target=stage("preferences"),
        ),
        "heldout-pool": lambda: pool.run(
            config.heldout, target=stage("heldout-pool"), seed=config.seed, max_dropped=config.max_dropped
        ),
        "heldout": lambda: heldout.run(source=stage("heldout-pool"), target=stage("heldout")),
    }
    manifests: dict[str, Manifest] = {}
    for name, start in stages.items():
        manifests[name] = start()
        if name == until:
            return manifests
    if config.pool.is_embedded_world():
        write_json(run.folder / "quality.json", evidence_quality_report(run))
    return manifests


def _benchmark_images(config: RunConfig) -> Mapping[str, Sequence[tuple[str | bytes, str]]]:
    """Return the images of the recipe's benchmarks that must not be trained on, unless the recipe names others."""
    if config.experts.decontamination.benchmarks is not None:
        return {}
    return benchmark_run.shown_images(benchmark_run.tasks_of(config.benchmarks), benchmark_run.judge_role(config.judge))


def improve(run: RewardRun) -> Iterator[RoundResult]:
    """Evaluate the base model, then run the rounds; yield each round when it is finished."""
    base = model_folder.locate_for_run(run.config.base, run.folder)
    config = run.config.model_copy(update={"judge": run.config.trained_judge.of_model(base)})
    return rounds.run(config.rounds, run.folder, base=base, stages=_bind_stages(RewardRun(config, run.folder)))


def _check_base(run: RewardRun) -> None:
    """Raise InputError if the rounds cannot train the base model, before hours are spent on data for it."""
    if run.config.rounds.num_rounds:
        model_families.check_trainable(model_folder.locate_for_run(run.config.base, run.folder))


def evidence_quality_report(run: RewardRun) -> Mapping[str, Any]:
    """Measure the experts and the preference labels against the ground truth of the embedded world."""
    from vlgenrm_ray.shapes import world

    return {
        "experts": evidence_quality.expert_quality(run.stage("experts").records(CheckedResponse), world.claim_is_true),
        "preferences": evidence_quality.label_quality(
            run.stage("preferences").records(Preference), world.response_is_true
        ),
    }


def critique_checker(config: RunConfig) -> CritiqueChecker:
    """Build the checker of critiques of a run: with the vocabulary and the thresholds of its experts."""
    return CritiqueChecker.from_vocabulary(config.experts.vocabulary, config.experts.fitted_thresholds())


def critic(config: RunConfig, round: int) -> JudgeConfig:
    """Return the settings of the judge that writes the critiques of a round: pointwise ones at a cold start."""
    return config.judge.with_kind("pointwise") if config.rounds.cold_start and round == 1 else config.judge


def _bind_stages(run: RewardRun) -> RoundStages:
    config, judge = run.config, run.config.judge
    checker = critique_checker(config)

    def with_shard_size(folder: StageFolder) -> StageFolder:
        return StageFolder(folder.path, shard_mb=config.shard_mb)

    def run_critiques(model: Path, round: int, target: StageFolder) -> Manifest:
        return critiques.run(
            config.critiques,
            judge=critic(config, round),
            model=model,
            round=round,
            source=run.stage("preferences"),
            target=with_shard_size(target),
            max_dropped=config.max_dropped,
        )

    def run_selection(round: int, source: StageFolder, target: StageFolder) -> Manifest:
        return selection.run(
            config.selection,
            judge=judge,
            checker=checker,
            source=source,
            preferences=run.stage("preferences"),
            target=with_shard_size(target),
        )

    def run_training(model: Path, round: int, examples: StageFolder, target: Path) -> TrainingResult:
        return training.run(
            config.training,
            base=model,
            examples=run.stage("preferences") if judge.is_discriminative else examples,
            target=target,
            round=round,
            judge=judge,
            max_dropped=config.max_dropped,
        )

    def run_evaluation(model: Path, target: StageFolder) -> Manifest:
        return pairs.run(
            config.evaluation,
            judge=judge,
            model=model,
            source=run.stage("heldout"),
            target=target,
            max_dropped=config.max_dropped,
        )

    def run_benchmarks(model: Path, folder: Path) -> Mapping[str, float]:
        if not config.benchmarks:
            return {}
        results = benchmark_run.measure_engine(
            benchmark_run.tasks_of(config.benchmarks),
            config.evaluation,
            judge=judge,
            model=model,
            role=benchmark_run.judge_role(judge),
            folder=folder,
        )
        return {result.label: result.report.main for result in results}

    return RoundStages(
        critiques=None if judge.is_discriminative else run_critiques,
        selection=run_selection,
        training=run_training,
        evaluation=run_evaluation,
        benchmarks=run_benchmarks,
    )


def _gains(run: RewardRun, results: Sequence[RoundResult]) -> dict[int, Mapping[str, Any]]:
    """Map each round to its gain in held-out accuracy over the base, on the same pairs."""
    base, *later = [StageFolder(run.folder / f"round-{r.round}" / "evaluation") for r in results]
    return {
        r.round: estimate_as_json(pairs.accuracy_gain(base, folder))
        for r, folder in zip(results[1:], later, strict=True)
    }


def _link_best(run: RewardRun, best: RoundResult) -> None:
    write_json(
        run.folder / "best.json",
        {"round": best.round, "model": str(best.model), "pairwise_accuracy": best.accuracy},
    )
    new_link = run.folder / ".best"
    new_link.unlink(missing_ok=True)
    # Relative, so that the link survives a move of the run folder.
    new_link.symlink_to(os.path.relpath(best.model, run.folder) if best.round else best.model)
    new_link.replace(run.folder / "best")


def _earlier_seconds(run: RewardRun) -> float:
    """Return the seconds of earlier, interrupted attempts at this run."""
    path = run.folder / "summary.json"
    return float(read_json(path)["seconds"]) if path.exists() else 0.0
