"""Measured values of a run, read from its folder for the HTML report: stages, rounds, policy training, benchmarks.

Reads a run while it is written as well: stages without a manifest are counted from the shards committed so far.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.evaluation.metrics import Estimate, outcomes, paired_gain
from vlgenrm_ray.policy.run_logging import RunPaths, read_lines
from vlgenrm_ray.report.lineage import natural_key

Array = npt.NDArray[np.float64]

SHARED_STAGES = ("pool", "responses", "experts", "preferences", "heldout-pool", "heldout")
ROUND_STAGES = ("critiques", "selection", "training", "evaluation")
MEASUREMENT_STAGES = ("candidates", "best-of-n/replies", "replies")
"""Stages of `vlgenrm best-of-n --run` and `vlgenrm benchmark --run`."""
_NO_IMAGE = "/no-image"
_BEST_OF = re.compile(r"best of (\d+)")
"""Metric of a best-of-N result, see `evaluation/benchmarks/best_of_n.py`."""
_MAX_CRITIQUES = 200_000
"""Critiques read for the histogram; larger runs are represented by their first shards, whose order is random."""
SELECTED = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAccount:
    """Rows, tokens and time of one stage."""

    name: str
    """Path of the stage below the run folder, such as `round-1/critiques`."""
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    """Reason -> rows."""
    num_tokens: int
    seconds: float
    is_complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPairs:
    """Rewards of both sides of N held-out pairs, NaN where there is none."""

    ids: tuple[str, ...]
    """Ids of the preferences."""
    kinds: tuple[str, ...]
    chosen: Array
    rejected: Array

    def outcomes(self) -> dict[str, float]:
        """Map each pair id to its outcome: 1 right, 0 wrong, 1/2 tied or unreadable."""
        return dict(zip(self.ids, outcomes(self.chosen, self.rejected).tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Expected true score of the pick among n candidates: of a judge (95 % interval), an oracle, and at random."""

    n: int
    pick: float
    low: float
    high: float
    oracle: float
    random: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundData:
    """One round of a reward-model run; round 0 is the base model."""

    round: int
    folder: Path
    evaluation: Mapping[str, Any]
    """Metrics of the evaluation stage; empty while it runs."""
    selection: Mapping[str, Any]
    """Metrics of the selection stage; empty for the base model and while it runs."""
    pairs: JudgedPairs | None

    @property
    def name(self) -> str:
        """Name for readers."""
        return f"round {self.round}" if self.round else "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyData:
    """Logs of a policy's training."""

    folder: Path
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    decoding: list[dict[str, Any]]
    """Held-out measure by way of decoding, at a few evaluations from the first step to the last."""
    summary: Mapping[str, Any]
    """Content of `summary.json`; empty while the training runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything that the report shows about one run, except for its examples."""

    name: str
    folder: Path
    recipe: str
    """The resolved recipe, as YAML."""
    seed: int | None
    is_finished: bool
    seconds: float
    stages: tuple[StageAccount, ...]
    rounds: tuple[RoundData, ...]
    quality: Mapping[str, Any]
    """Content of `quality.json`: experts and labels against the ground truth, where it is known."""
    benchmarks: tuple[Mapping[str, Any], ...]
    """Results of benchmarks (`BenchmarkResult.as_json`) with `label`, the name of their file, and `where`, their folder
    below the run or the model."""
    policy: PolicyData | None
    expert_noise: Mapping[str, float]
    """Error -> rate that an experiment added to the experts (`experts.noise`); empty without such an experiment."""

    @property
    def best_round(self) -> RoundData | None:
        """The evaluated round with the best held-out accuracy, the earliest on a tie."""
        evaluated = [r for r in self.rounds if r.evaluation]
        return max(evaluated, key=lambda r: (r.evaluation["pairwise_accuracy"], -r.round), default=None)

    def gain(self) -> Estimate | None:
        """Gain of the best round over the base on the same pairs; None without a trained round."""
        best = self.best_round
        base = self.rounds[0] if self.rounds else None
        if best is None or base is None or base.pairs is None or best.pairs is None or best is base:
            return None
        return paired_gain(base.pairs.outcomes(), best.pairs.outcomes())


def read_run(folder: Path) -> list[RunData]:
    """Read a run folder: a reward-model run, a policy's run, or a co-training, which consists of several runs.

    Args:
        folder: Run folder, finished or not; also the folder of `vlgenrm benchmark --run` or `vlgenrm best-of-n --run`.

    Raises:
        InputError: The folder is not that of a run, or was written by another version.
    """
    folder = folder.absolute()
    if not (folder / "config.yaml").exists():
        if measurement := _read_measurement(folder):
            return [measurement]
        raise InputError(f"{folder}: not a run folder (it has no config.yaml); give the folder of --run")
    iterations = sorted(folder.glob("iteration-*"), key=lambda path: int(path.name.partition("-")[2]))
    if not iterations:
        return [_read_single_run(folder, folder.name)]
    parts = [part for iteration in iterations for part in (iteration / "reward", iteration / "policy")]
    return [
        _read_single_run(part, f"{folder.name}/{part.relative_to(folder)}")
        for part in parts
        if (part / "config.yaml").exists()
    ]


def _read_measurement(folder: Path) -> RunData | None:
    """Read the folder of a measurement outside of a run; None if it holds no result of a benchmark."""
    results = tuple(_read_benchmarks(folder))
    if not results:
        return None
    stages = tuple(_read_stages(folder))
    return RunData(
        name=folder.name,
        folder=folder,
        recipe="",
        seed=None,
        is_finished=True,
        seconds=sum(stage.seconds for stage in stages),
        stages=stages,
        rounds=(),
        quality={},
        benchmarks=results,
        policy=None,
        expert_noise={},
    )


def best_of_n_curve(benchmark: Mapping[str, Any]) -> list[CurvePoint]:
    """Return the points of a best-of-N result by n; empty for another benchmark."""
    points = []
    for name, row in benchmark["metrics"].items():
        ours = row["ours"]
        if (match := _BEST_OF.fullmatch(name)) is None or ours is None or ours["value"] is None:
            continue
        low, high = ours["ci95"]
        points.append(
            CurvePoint(
                n=int(match[1]),
                pick=ours["value"],
                low=low,
                high=high,
                oracle=row["rules"]["oracle"],
                random=row["rules"]["random"],
            )
        )
    return sorted(points, key=lambda point: point.n)


def _read_single_run(folder: Path, name: str) -> RunData:
    recipe = (folder / "config.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(recipe)
    rounds = tuple(_read_rounds(folder))
    policy = _read_policy(folder / "policy") if (folder / "policy").is_dir() else None
    stages = tuple(_read_stages(folder))
    summary = _read_json_or_empty(folder / "summary.json") or (policy.summary if policy else {})
    seconds = summary.get("seconds")
    return RunData(
        name=name,
        folder=folder,
        recipe=recipe,
        seed=settings.get("seed"),
        is_finished="until" in summary or bool(summary.get("finished")) or _is_finished(settings, rounds, policy),
        seconds=sum(stage.seconds for stage in stages) if seconds is None else float(seconds),
        stages=stages,
        rounds=rounds,
        quality=_read_json_or_empty(folder / "quality.json"),
        benchmarks=tuple(_read_benchmarks(folder)),
        policy=policy,
        expert_noise=_read_expert_noise(settings),
    )


def _read_expert_noise(settings: Mapping[str, Any]) -> dict[str, float]:
    noise = (settings.get("experts") or {}).get("noise") or {}
    return {name: noise[name] for name in ("missed", "small_missed", "confused", "unsure") if noise.get(name)}


def _is_finished(settings: Mapping[str, Any], rounds: tuple[RoundData, ...], policy: PolicyData | None) -> bool:
    if policy is not None:
        return bool(policy.summary)
    if not rounds or not all(r.evaluation for r in rounds):
        return False
    planned = settings.get("rounds", {})
    best = max(rounds, key=lambda r: (r.evaluation["pairwise_accuracy"], -r.round)).round
    last = rounds[-1].round
    return last >= int(planned.get("num_rounds", 0)) or last - best >= int(planned.get("patience", 1))


def _read_stages(folder: Path) -> Iterator[StageAccount]:
    names = [*SHARED_STAGES]
    names += [f"{path.name}/{stage}" for path in _round_folders(folder) for stage in ROUND_STAGES]
    names += MEASUREMENT_STAGES
    for name in names:
        if (folder / name / "shards").is_dir():
            yield _stage_account(StageFolder(folder / name), name)


def _stage_account(stage: StageFolder, name: str) -> StageAccount:
    if (manifest := stage.manifest()) is not None:
        return StageAccount(
            name=name,
            rows_in=manifest.rows_in,
            rows_out=manifest.rows_out,
            dropped=manifest.dropped,
            num_tokens=manifest.num_tokens,
            seconds=manifest.seconds,
            is_complete=True,
        )
    try:
        total = stage.read_committed().total()
    except StageError:
        if stage.manifest() is None:
            raise
        return _stage_account(stage, name)  # It was finished meanwhile: its shards are merged.
    return StageAccount(
        name=name,
        rows_in=total.num_units,
        rows_out=total.num_records,
        dropped=dict(sorted(total.dropped.items())),
        num_tokens=total.num_tokens,
        seconds=float(_read_json_or_empty(stage.path / "started.json").get("seconds", 0.0)),
        is_complete=False,
    )


def _round_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*"), key=lambda path: int(path.name.partition("-")[2]))


def _read_rounds(folder: Path) -> Iterator[RoundData]:
    for path in _round_folders(folder):
        evaluation = StageFolder(path / "evaluation").manifest()
        selection = StageFolder(path / "selection").manifest()
        yield RoundData(
            round=int(path.name.partition("-")[2]),
            folder=path,
            evaluation=evaluation.metrics if evaluation else {},
            selection=selection.metrics if selection else {},
            pairs=read_judged_pairs(StageFolder(path / "evaluation")) if evaluation else None,
        )


def read_judged_pairs(evaluation: StageFolder) -> JudgedPairs:
    """Read the rewards of an evaluation stage, without the judgements of blank images and without critiques."""
    ids: list[str] = []
    kinds: list[str] = []
    rewards: dict[str, list[Array]] = {"chosen": [], "rejected": []}
    for shard in evaluation.shards():
        table = evaluation.read_records(
            shard, columns=["id", "preference_id", "kind", "chosen.reward", "rejected.reward"]
        )
        is_shown = np.array([not id.endswith(_NO_IMAGE) for id in table.column("id").to_pylist()], dtype=bool)
        table = table.filter(is_shown)
        ids += table.column("preference_id").to_pylist()
        kinds += table.column("kind").to_pylist()
        for side, arrays in rewards.items():
            values = [row["reward"] for row in table.column(side).to_pylist()]
            arrays.append(np.array(values, dtype=np.float64))
    empty = np.array([], dtype=np.float64)
    return JudgedPairs(
        ids=tuple(ids),
        kinds=tuple(kinds),
        chosen=np.concatenate([empty, *rewards["chosen"]]),
        rejected=np.concatenate([empty, *rewards["rejected"]]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One bin of a reliability diagram."""

    mean_reward: float
    """Mean reward of its responses, in [0, 1]."""
    share_right: float
    """Share of them that are the chosen side, in [0, 1]."""
    num: int


def reliability(pairs: JudgedPairs, bins: int = 10) -> list[ReliabilityBin]:
    """Bin the rewards of both sides by value, and compare each bin's mean with its share of chosen responses.

    Args:
        pairs: Judged pairs; responses without a reward are left out.
        bins: Number of bins of equal width over [0, 1].

    Returns:
        The bins that hold a response, lowest first (arXiv 1706.04599).
    """
    reward = np.concatenate([pairs.chosen, pairs.rejected])
    is_right = np.concatenate([np.ones(len(pairs.chosen)), np.zeros(len(pairs.rejected))])
    is_readable = ~np.isnan(reward)
    reward, is_right = reward[is_readable], is_right[is_readable]
    index = np.minimum((reward * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(
            mean_reward=float(reward[index == b].mean()),
            share_right=float(is_right[index == b].mean()),
            num=int((index == b).sum()),
        )
        for b in range(bins)
        if (index == b).any()
    ]


def critiques_by_decision(critiques: StageFolder, selection: StageFolder) -> tuple[dict[str, Array], int]:
    """Group critiques by the result of the selection.

    Args:
        critiques: Stage of critiques.
        selection: Finished selection from them.

    Returns:
        `kept` or a drop reason -> probability that each of its critiques gave to the right verdict, critiques without
        a readable verdict left out; and the number of critiques read, at most 200,000 and a shard.
    """
    p_right: dict[str, float] = {}
    num_read = 0
    for shard in critiques.shards():
        table = critiques.read_records(shard, columns=["id", "side", "p_yes"])
        columns = (table.column(name).to_pylist() for name in ("id", "side", "p_yes"))
        for id, side, p_yes in zip(*columns, strict=True):
            num_read += 1
            if p_yes is not None:
                p_right[id] = p_yes if side == "chosen" else 1.0 - p_yes
        if num_read >= _MAX_CRITIQUES:
            break
    by_decision: dict[str, list[float]] = {}
    for shard in selection.shards():
        for id in selection.read_records(shard, columns=["id"]).column("id").to_pylist():
            if (value := p_right.get(id.removesuffix("/example"))) is not None:
                by_decision.setdefault(SELECTED, []).append(value)
    for drop in selection.dropped():
        if (value := p_right.get(drop.id)) is not None:
            by_decision.setdefault(drop.reason, []).append(value)
    return {name: np.array(values) for name, values in by_decision.items()}, num_read


def _read_policy(folder: Path) -> PolicyData:
    paths = RunPaths(folder)
    return PolicyData(
        folder=folder,
        steps=read_lines(paths.metrics),
        evaluations=read_lines(paths.evaluations),
        samples=read_lines(paths.samples),
        decoding=read_lines(paths.decoding),
        summary=_read_json_or_empty(folder / "summary.json"),
    )


def _read_benchmarks(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the results of a run's benchmarks, and those of `vlgenrm benchmark` and `best-of-n` in the same folder."""
    # Not in all folders: those of images and checkpoints may hold very many files.
    own = [path for path in (folder, folder / "best-of-n", folder / "benchmarks") if (path / "replies").is_dir()]
    of_rounds = sorted(folder.glob("*/benchmarks"), key=lambda path: natural_key(path.parent.name))
    for results in (*own, *of_rounds):
        for path in sorted(results.glob("*.json")):
            if "metrics" in (result := read_json(path)):
                where = results.parent.name if results in of_rounds else _model_name(str(result.get("model", "")))
                yield result | {"where": where, "label": path.stem}


def _model_name(model: str) -> str:
    return model if "://" in model else Path(model).name


def _read_json_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
