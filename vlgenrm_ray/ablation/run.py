"""Runs the cells of an ablation one after another, and writes the result after each.

<run>/config.yaml                 the resolved recipe
<run>/stages/<stage>-<hash>/      stages, shared by all cells that need them; see `plan.py` and data/store.py
<run>/cells/<hash>.json           measurements of one cell with one seed: a finished cell is never run again
<run>/diagnosis.json              see `diagnosis.py`
<run>/ablation.json, ablation.csv the result: one row per cell and round, and the cells that failed in this call,
                                  which the next call tries again
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray import pipeline, plugins, recipe
from vlgenrm_ray.ablation import diagnosis, examples, labels, tables
from vlgenrm_ray.ablation.config import REFERENCE, AblationConfig
from vlgenrm_ray.ablation.plan import Cell, CellPlan, RoundPlan, load_trainer, plan_cell, plan_cells, select_cells
from vlgenrm_ray.ablation.results import CellResult, RoundMeasurement, split_results, summarise
from vlgenrm_ray.ablation.trainers import TrainerTask
from vlgenrm_ray.curation import experts, pool, preferences, responses
from vlgenrm_ray.data import lease
from vlgenrm_ray.data.files import read_json, write_json, write_text
from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.evaluation import heldout
from vlgenrm_ray.records import Checkpoint, PairResult, Preference
from vlgenrm_ray.reward import critiques, selection
from vlgenrm_ray.settings import digest

FILE_NAME = "ablation.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutcome:
    """A finished or failed cell, as it is reported while the ablation runs."""

    plan: CellPlan
    result: CellResult | None
    error: str = ""
    """Reason if the cell failed."""


class AblationRun:
    """A run folder with the recipe that fills it."""

    def __init__(self, config: AblationConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder.absolute()
        self.truth: labels.TruthFunction | None = plugins.load(config.truth, {}, "truth") if config.truth else None
        self._label_metrics: dict[str, dict[str, Any]] = {}

    def stage(self, address: str) -> StageFolder:
        """Return the folder of a stage by its address."""
        return StageFolder(self.folder / "stages" / address)

    def _once(self, address: str, start: Callable[[StageFolder], Any]) -> StageFolder:
        """Run a stage unless it is complete; return its folder."""
        folder = self.stage(address)
        if folder.manifest() is None:
            start(folder)
        return folder

    # -- stages ------------------------------------------------------------------------------------------------------

    def prepare(self, plan: CellPlan) -> None:
        """Run the stages before the first round: unlabelled pairs, and the test pairs."""
        config, seed = plan.config, plan.config.seed
        limit = config.max_dropped
        questions = self._once(
            plan.pool, lambda target: pool.run(config.pool, target=target, seed=seed, max_dropped=limit)
        )
        answers = self._once(
            plan.responses,
            lambda target: responses.run(
                config.responses, seed=seed, source=questions, target=target, max_dropped=limit
            ),
        )
        checked = self._once(
            plan.experts, lambda target: experts.run(config.experts, source=answers, target=target, max_dropped=limit)
        )
        self._once(
            plan.preferences,
            lambda target: preferences.run(
                config.preferences, experts=config.experts, seed=seed, source=checked, target=target
            ),
        )
        labelled = self._once(plan.test_pool, lambda target: pool.run(config.heldout, target=target, seed=0))
        self._once(plan.test, lambda target: heldout.run(source=labelled, target=target))

    def run_round(self, plan: CellPlan, stage: RoundPlan, model: Path) -> Path:
        """Run one round up to its trained judge; return the judge's model folder."""
        base = model_folder.locate(plan.config.base)
        drawn = self._draw_pairs(plan, stage) if not stage.critiques else self._draw_examples(plan, stage, model)
        task = TrainerTask(
            config=plan.config,
            round=stage.round,
            start=base if plan.config.rounds.start_from == "base" else model,
            preferences=self.stage(stage.labels),
            critiques=self.stage(stage.labelled_critiques) if stage.labelled_critiques else None,
            examples=drawn,
            num_pairs=max(1, plan.num_examples // 2),
            target=self.stage(stage.training).path,
        )
        return load_trainer(plan.cell.trainer).train(task).model

    def _draw_pairs(self, plan: CellPlan, stage: RoundPlan) -> StageFolder:
        """Draw the pairs that a discriminative judge is trained on."""
        return self._once(
            stage.examples,
            lambda target: examples.run_pairs(
                num_examples=plan.num_examples,
                num_pairs=plan.cell.num_pairs,
                seed=plan.seed,
                source=self.stage(stage.labels),
                target=target,
            ),
        )

    def _draw_examples(self, plan: CellPlan, stage: RoundPlan, model: Path) -> StageFolder:
        """Write critiques, label the pairs, select, and draw the examples that the judge is trained on."""
        config, pairs = plan.config, self.stage(plan.preferences)
        written = self._once(
            stage.critiques,
            lambda target: critiques.run(
                config.critiques,
                judge=pipeline.critic(config, stage.round),
                model=model,
                round=stage.round,
                source=pairs,
                target=target,
                max_dropped=config.max_dropped,
            ),
        )
        self._label(plan.cell, stage, pairs, written)
        labelled, moved = self.stage(stage.labels), self.stage(stage.labelled_critiques)
        selected = self._once(
            stage.selection,
            lambda target: selection.run(
                config.selection,
                judge=config.judge,
                checker=pipeline.critique_checker(config),
                source=moved,
                preferences=labelled,
                target=target,
            ),
        )
        if not selected.complete().rows_out:
            raise StageError(f"round {stage.round}: the selection yields no example ({selected.complete().dropped})")
        return self._once(
            stage.examples,
            lambda target: examples.run(
                num_examples=plan.num_examples,
                num_pairs=plan.cell.num_pairs,
                seed=plan.seed,
                source=selected,
                target=target,
            ),
        )

    def _label(self, cell: Cell, stage: RoundPlan, pairs: StageFolder, written: StageFolder) -> None:
        target, target_critiques = self.stage(stage.labels), self.stage(stage.labelled_critiques)
        if cell.labels == "experts" or (target.manifest() and target_critiques.manifest()):
            return
        if cell.labels == "truth":
            assert self.truth is not None, "the recipe was accepted without a truth"
            label = labels.label_by_truth(self.truth)
        else:
            label = labels.label_by_judge
        labels.run(
            label,
            fingerprint=digest([cell.labels, self.config.truth if cell.labels == "truth" else ""]),
            preferences=pairs,
            critiques=written,
            target=target,
            target_critiques=target_critiques,
        )

    def evaluate(self, plan: CellPlan, address: str, model: Path) -> StageFolder:
        """Judge the test pairs with a model, in the cell's way of judging."""
        config = plan.config.model_copy(update={"judge": plan.evaluation_judge})
        trainer = load_trainer(plan.cell.trainer)
        source = self.stage(plan.test)
        return self._once(address, lambda target: trainer.evaluate(config, model=model, source=source, target=target))

    # -- cells -------------------------------------------------------------------------------------------------------

    def result_path(self, plan: CellPlan) -> Path:
        """Return the file that holds the result of a finished cell."""
        return self.folder / "cells" / f"{plan.key}.json"

    def read_result(self, plan: CellPlan) -> CellResult | None:
        """Read the result of a cell, None if it is not finished. Its name is that of the present recipe."""
        path = self.result_path(plan)
        if not path.exists():
            return None
        return CellResult.from_json(
            read_json(path) | {"cell": plan.cell.name, "variants": dict(plan.cell.variants), "seed": plan.seed}
        )

    def run_cell(self, plan: CellPlan) -> CellResult:
        """Run a cell with one seed, or return its result if it is finished.

        Raises:
            VlGenRMError: See `errors.py`. Finished stages stay on disk, and the same call continues from them.
        """
        if (finished := self.read_result(plan)) is not None:
            return finished
        self.prepare(plan)
        model = model_folder.locate(plan.config.base)
        measurements: list[RoundMeasurement] = []
        if plan.base_evaluation:
            measurements.append(self._measure(plan, None, self.evaluate(plan, plan.base_evaluation, model)))
        for stage in plan.rounds:
            model = self.run_round(plan, stage, model)
            measurements.append(self._measure(plan, stage, self.evaluate(plan, stage.evaluation, model)))
        result = CellResult(
            cell=plan.cell.name,
            variants=dict(plan.cell.variants),
            seed=plan.seed,
            key=plan.key,
            rounds=tuple(measurements),
        )
        write_json(self.result_path(plan), result.as_json())
        return result

    def _measure(self, plan: CellPlan, stage: RoundPlan | None, evaluation: StageFolder) -> RoundMeasurement:
        scores, blind = split_results(evaluation.records(PairResult))
        num_responses = 2 * (len(scores.ids) + len(blind.ids))
        tokens_per_response = evaluation.complete().num_tokens / num_responses if num_responses else 0.0
        if stage is None:
            return RoundMeasurement(round=0, scores=scores, blind=blind, tokens_per_response=tokens_per_response)
        drawn = self.stage(stage.examples).complete().metrics
        manifests = self._manifests(plan, stage.round)
        trainings = {other.training for other in plan.rounds}
        num_pairs = self.stage(stage.labels).complete().rows_out
        return RoundMeasurement(
            round=stage.round,
            scores=scores,
            blind=blind,
            tokens_per_response=tokens_per_response,
            num_pairs=min(num_pairs, plan.cell.num_pairs or num_pairs),
            num_available=drawn["num_available"],
            num_examples=drawn["num_examples"],
            num_steps=int(self.stage(stage.training).complete().metrics.get("steps", 0)),
            num_generated=sum(m.num_tokens for address, m in manifests.items() if address not in trainings),
            num_trained=sum(m.num_tokens for address, m in manifests.items() if address in trainings),
            seconds=round(sum(m.seconds for m in manifests.values()), 1),
            labels=self._measure_labels(stage.labels),
        )

    def _manifests(self, plan: CellPlan, until: int) -> dict[str, Manifest]:
        """Map the addresses of all stages up to a round, without those of the measurement, to their manifests."""
        measuring = {plan.test_pool, plan.test, plan.base_evaluation, *(stage.evaluation for stage in plan.rounds)}
        later = {a for s in plan.rounds if s.round > until for a in (s.critiques, s.selection, s.examples, s.training)}
        later |= {a for s in plan.rounds if s.round > until for a in (s.labels, s.labelled_critiques)}
        later -= {plan.preferences}
        return {a: self.stage(a).complete() for a in plan.addresses() if a not in measuring | later}

    def _measure_labels(self, address: str) -> dict[str, Any]:
        if self.truth is None:
            return {}
        if address not in self._label_metrics:
            self._label_metrics[address] = labels.measure_labels(self.stage(address), self.truth)
        return self._label_metrics[address]

    # -- the whole ---------------------------------------------------------------------------------------------------

    def clusters(self, plan: CellPlan) -> dict[str, str]:
        """Map each test pair to its image, by the image's hash."""
        return {pair.id: pair.question.image.sha256 for pair in self.stage(plan.test).records(Preference)}

    def _judges_of(self, plan: CellPlan) -> list[dict[str, Any]]:
        """Name the model folder of a finished cell's last round; nothing if it is not finished."""
        if not self.result_path(plan).exists():
            return []
        checkpoints = self.stage(plan.rounds[-1].training).records(Checkpoint)
        return [{"cell": plan.cell.name, "seed": plan.seed, "model": checkpoint.uri} for checkpoint in checkpoints]

    def write(self, plans: Sequence[CellPlan], failures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Summarise all finished cells of the recipe into `ablation.json` and `ablation.csv`; return the result."""
        finished = [cell for plan in plans if (cell := self.read_result(plan)) is not None]
        clusters = self.clusters(plans[0]) if finished else {}
        rows = summarise(finished, clusters, reference=REFERENCE)
        diagnosis_path = self.folder / "diagnosis.json"
        result = {
            "rows": rows,
            "failures": list(failures),
            "num_finished": len(finished),
            "num_cells": len(plans),
            "num_test_pairs": len(clusters),
            "num_test_images": len(set(clusters.values())),
            "num_examples": self.config.num_examples,
            "num_steps": self.config.num_steps,
            "seeds": list(self.config.seeds),
            "pair_curve": _pair_curve([plan.cell for plan in plans]),
            "models": [judge for plan in plans for judge in self._judges_of(plan)],
            "diagnosis": read_json(diagnosis_path) if diagnosis_path.exists() else {},
        }
        write_json(self.folder / FILE_NAME, result)
        write_text(self.folder / "ablation.csv", tables.as_csv(rows))
        return result


def _pair_curve(cells: Sequence[Cell]) -> list[str]:
    """Return the names of the cells that differ from the reference in nothing but the number of pairs, with it."""

    def rest(cell: Cell) -> tuple[object, ...]:
        return (cell.overrides, cell.labels, cell.trainer, cell.rounds)

    names = dict.fromkeys(cell.name for cell in cells if rest(cell) == rest(cells[0]))
    return list(names) if len(names) > 1 else []


def plan_all(config: AblationConfig) -> list[CellPlan]:
    """Plan all cells of all seeds, in the order of their runs. Raises ConfigError for settings that do not fit."""
    cells = plan_cells(config)
    return [plan_cell(config, cell, seed) for seed in config.seeds for cell in cells]


def run(
    config: AblationConfig,
    folder: Path,
    *,
    only: Sequence[str] = (),
    on_cell: Callable[[CellOutcome], None] = lambda outcome: None,
) -> dict[str, Any]:
    """Run the ablation in `folder`, or continue it where it stopped.

    Args:
        config: The recipe, as `config.load` returns it.
        folder: Run folder, on a file system that all nodes share.
        only: Names of the cells to run, or patterns; default: all.
        on_cell: Called with each cell that is finished or failed.

    Returns:
        The content of `ablation.json`.

    Raises:
        ConfigError: The settings of a cell are not valid, or a pattern matches no cell.
    """
    plans = plan_all(config)
    names = {cell.name for cell in select_cells(plan_cells(config), only)}
    ablation = AblationRun(config, folder)
    failures: list[dict[str, Any]] = []
    with lease.hold(ablation.folder):
        write_text(ablation.folder / "config.yaml", recipe.dump(config))
        for index, plan in enumerate(plans):
            if plan.cell.name in names:
                outcome = _try_cell(ablation, plan)
                if outcome.error:
                    failures.append({"cell": plan.cell.name, "seed": plan.seed, "error": outcome.error})
                ablation.write(plans, failures)
                on_cell(outcome)
            is_last_of_seed = index + 1 == len(plans) or plans[index + 1].seed != plan.seed
            if plan.seed == config.seeds[0] and is_last_of_seed:
                diagnosis.run(ablation, [p for p in plans if p.seed == plan.seed])
        return ablation.write(plans, failures)


def _try_cell(ablation: AblationRun, plan: CellPlan) -> CellOutcome:
    """Run a cell. A failure is a row of the result: it must not cost the other cells."""
    try:
        return CellOutcome(plan=plan, result=ablation.run_cell(plan))
    except VlGenRMError as error:
        return CellOutcome(plan=plan, result=None, error=str(error))
    except Exception as error:  # Also failures of Ray and of engines, which have many types.
        _log.exception("cell '%s', seed %d, failed", plan.cell.name, plan.seed)
        return CellOutcome(plan=plan, result=None, error=f"{type(error).__name__}: {error}".splitlines()[0])
