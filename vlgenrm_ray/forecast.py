"""Forecast of a run's cost, from the manifests of a finished small run: rows, tokens, seconds and dollars per stage.

A stage costs a start, which does not depend on its size (processes, engines, models, the first rows), and an equal time
per row, divided by the actors or workers that share the work:

    seconds = start + rows x seconds per row x (actors of the sample / actors of the run)

Rows of a stage grow with the rows of the pool, or of the held-out data. The sample has to be a run of the same recipe
on the same machines, only smaller.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray import recipe
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

_OF_POOL = ("pool", "responses", "experts", "preferences")
_OF_HELDOUT = ("heldout-pool", "heldout")
_OF_ROUND = ("critiques", "selection", "training")
_EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Cost of a stage, summed over the rounds of the run."""

    stage: str
    rows: int
    tokens: int
    """Tokens that engines generate, or that training processes."""
    seconds: float
    num_gpus: float
    """GPUs that the stage uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageSample:
    """One execution of a stage in the sample."""

    rows: int
    tokens: int
    start_s: float
    seconds_per_row: float

    def seconds(self, rows: float, speed_up: float) -> float:
        return self.start_s + rows * self.seconds_per_row / speed_up


def forecast(
    config: RunConfig, sample: Path, *, num_gpus: float | None = None, num_rows: int | None = None
) -> list[StageCost]:
    """Forecast the cost of a run.

    Args:
        config: Recipe of the run.
        sample: Run folder of a finished small run of the recipe.
        num_gpus: GPUs of the cluster, all of which engines and training use; default: the recipe's actors use theirs.
        num_rows: Rows of the pool; default: `pool.count`, for the embedded world.

    Returns:
        One entry per stage, in the order of the run.

    Raises:
        InputError: The sample is not a finished run or ran on other hardware, or the number of rows is not known.
    """
    source = recipe.load(RunConfig, sample / "config.yaml")
    _check_hardware(source, config, sample)
    if num_rows is None:
        if config.pool.source != "shapes":
            raise InputError("--rows: state the number of rows of the pool (`vlgenrm inspect DATA` shows it)")
        num_rows = config.pool.count
    before, now = _num_workers(source, None), _num_workers(config, num_gpus)
    gpus = _gpus(config, now)
    pool, heldout = (_manifest(sample / name) for name in ("pool", "heldout-pool"))
    growth = num_rows / max(pool.rows_in, 1)
    heldout_growth = config.heldout.count / max(heldout.rows_in, 1) if config.heldout.source == "shapes" else 1.0

    def cost(stage: str, measured: Sequence[_StageSample], growth: float, times: int) -> StageCost:
        count = len(measured)
        rows, tokens = (sum(getattr(m, name) for m in measured) / count for name in ("rows", "tokens"))
        speed_up = now.get(stage, 1) / before.get(stage, 1)
        seconds = sum(m.seconds(m.rows * growth, speed_up) for m in measured) / count
        return StageCost(
            stage=stage,
            rows=round(rows * growth * times),
            tokens=round(tokens * growth * times),
            seconds=seconds * times,
            num_gpus=gpus.get(stage, 0.0),
        )

    costs = [cost(stage, [_measure(_manifest(sample / stage))], growth, 1) for stage in _OF_POOL]
    costs += [cost(stage, [_measure(_manifest(sample / stage))], heldout_growth, 1) for stage in _OF_HELDOUT]
    if num_rounds := config.rounds.num_rounds:
        rounds = [folder for folder in _rounds(sample) if (folder / "training" / "manifest.json").exists()]
        if not rounds:
            raise InputError(f"--from {sample}: no round is finished; run the sample with rounds.num_rounds 1 or more")
        for stage in _OF_ROUND:
            measured = [_measure(_manifest(folder / stage)) for folder in rounds]
            costs.append(cost(stage, measured, growth, num_rounds))
    evaluations = [_measure(_manifest(folder / _EVALUATION)) for folder in _rounds(sample)]
    return [*costs, cost(_EVALUATION, evaluations, heldout_growth, num_rounds + 1)]


def _rounds(sample: Path) -> list[Path]:
    return sorted(path for path in sample.glob("round-*") if (path / _EVALUATION / "manifest.json").exists())


def _manifest(folder: Path) -> Manifest:
    manifest = StageFolder(folder).manifest()
    if manifest is None:
        raise InputError(f"--from: {folder} is not a finished stage; finish the sample with the command that began it")
    return manifest


def _measure(manifest: Manifest) -> _StageSample:
    """Split the seconds of a stage into a start and a time per row."""
    phases: Mapping[str, float] = manifest.metrics.get("phases", {})
    if phases:  # Training.
        rows = int(manifest.metrics["num_examples"])
        per_row = (phases.get("measure", 0.0) + phases["learn"]) / max(rows, 1)
    else:
        rows = manifest.rows_in
        streamed = rows - manifest.num_first_rows
        per_row = manifest.seconds / max(rows, 1)
        if manifest.num_first_rows and streamed >= manifest.num_first_rows:
            per_row = max(0.0, manifest.seconds - manifest.start_seconds) / streamed
    start_s = max(0.0, manifest.seconds - rows * per_row)
    return _StageSample(rows=rows, tokens=manifest.num_tokens, start_s=start_s, seconds_per_row=per_row)


def _pools(config: RunConfig) -> dict[str, ActorPoolConfig]:
    """Map each stage with engines to the pool of actors that bounds its speed."""
    expert_pools = config.experts.actor_pools()
    generators = [generator.actors for generator in config.responses.generators]
    pools = {"critiques": config.critiques.actors, "evaluation": config.evaluation.actors}
    candidates: Mapping[str, Iterable[ActorPoolConfig]] = {"responses": generators, "experts": expert_pools}
    return pools | {stage: min(of_stage, key=lambda pool: pool.num_actors) for stage, of_stage in candidates.items()}


def _num_workers(config: RunConfig, num_gpus: float | None) -> dict[str, float]:
    """Count the actors or workers of each stage, as many as the GPUs have room for if a number of GPUs is given."""
    each = {stage: (pool.num_actors, pool.num_gpus) for stage, pool in _pools(config).items()}
    each["training"] = (config.training.workers, config.training.num_gpus)
    if num_gpus is None:
        return {stage: float(count) for stage, (count, _) in each.items()}
    return {stage: max(1.0, num_gpus // gpus) if gpus else float(count) for stage, (count, gpus) in each.items()}


def _check_hardware(sample_config: RunConfig, config: RunConfig, sample: Path) -> None:
    """Raise InputError if a stage of the sample had other GPUs per actor: nothing follows for those of the run."""
    before, now = ({stage: pool.num_gpus for stage, pool in _pools(c).items()} for c in (sample_config, config))
    before["training"], now["training"] = sample_config.training.num_gpus, config.training.num_gpus
    for stage, num_gpus in now.items():
        if num_gpus != before[stage]:
            raise InputError(
                f"--from {sample}: stage '{stage}' had {before[stage]:g} GPUs for each actor there and has "
                f"{num_gpus:g} in the recipe; measure a small run of this recipe on the machines of the large one"
            )


def _gpus(config: RunConfig, workers: Mapping[str, float]) -> dict[str, float]:
    each = {stage: pool.num_gpus for stage, pool in _pools(config).items()} | {"training": config.training.num_gpus}
    return {stage: workers[stage] * gpus for stage, gpus in each.items()}


def forecast_table(costs: Sequence[StageCost], *, num_gpus: float, price: float) -> "Table":
    """Build a table of the costs, at most 80 columns wide, which names the bottleneck.

    Args:
        costs: Costs of all stages.
        num_gpus: GPUs of the cluster; all are paid for, also by stages that leave them idle.
        price: Dollars for a GPU and hour.
    """
    from rich.table import Table

    total = sum(cost.seconds for cost in costs)
    table = Table(title="forecast", title_style="bold", pad_edge=False)
    for name in ("stage", "rows", "tokens", "time", "share", "GPUs", "dollars"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for cost in costs:
        table.add_row(
            cost.stage,
            f"{cost.rows:,}",
            f"{cost.tokens:,}" if cost.tokens else "",
            _duration(cost.seconds),
            f"{cost.seconds / total:.0%}",
            f"{cost.num_gpus:g}",
            f"{_dollars(cost.seconds, num_gpus, price):,.2f}",
        )
    table.add_section()
    table.add_row("all", "", "", _duration(total), "", f"{num_gpus:g}", f"{_dollars(total, num_gpus, price):,.2f}")
    longest = max(costs, key=lambda cost: cost.seconds)
    table.caption = f"bottleneck: {longest.stage}, {longest.seconds / total:.0%} of the time"
    return table


def _dollars(seconds: float, num_gpus: float, price: float) -> float:
    return seconds / 3600 * num_gpus * price


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36000 else f"{seconds / 3600:.1f} h"
