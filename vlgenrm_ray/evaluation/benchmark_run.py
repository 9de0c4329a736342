"""Measuring of models on benchmarks: all benchmarks of a run are asked together, with one engine per actor.

`score_answers` scores stored answers and starts nothing. `measure_engine` asks a model on Ray, `measure_here` a served
judge or another `BenchmarkModel` in this process. Both commit replies to a stage folder, so an interrupted run
continues, and return one result per benchmark:

    <folder>/replies/          see data/store.py: one BenchmarkReply per request
    <folder>/images/           images that the benchmark's file holds as bytes
    <folder>/<benchmark>.json  the result of a benchmark, as it is printed
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import addresses, flow
from vlgenrm_ray.data.arrow import from_table, to_table
from vlgenrm_ray.data.files import write_json
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.progress import Progress
from vlgenrm_ray.data.store import StageFolder, Unit, units_table, write_units
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation import benchmarks, pairs
from vlgenrm_ray.evaluation.benchmark_models import BenchmarkModel, EngineModel, timed_reply
from vlgenrm_ray.evaluation.benchmarks.benchmark import (
    Benchmark,
    BenchmarkReply,
    BenchmarkReport,
    BenchmarkRequest,
    BenchmarkRole,
)
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver
from vlgenrm_ray.evaluation.pairs import EngineFactory, EvaluationConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa

REPLIES = "replies"
"""Name of the stage folder below a benchmark run's folder."""
_CHUNK = 64
"""Requests between two commits of replies, for models in this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkTask:
    """One benchmark with its files."""

    name: str
    """Key of `BENCHMARKS`, or an import path."""
    data: Path
    """File or folder of the benchmark's questions."""
    images: str = ""
    """Folder or URI of its images; "": the folder of `data`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """Report of one benchmark, with the model and its costs."""

    label: str
    """Name of the result's file: the benchmark, with the name of its data if it was run on several."""
    report: BenchmarkReport
    details: Mapping[str, Any]
    """Benchmark, data, model, role, and what the model cost."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return dict(self.details) | self.report.as_json()


def score_answers(task: BenchmarkTask, answers: Path, *, allow_missing: bool = False) -> BenchmarkResult:
    """Score stored answers.

    Args:
        task: The benchmark.
        answers: Answers or judgements of one model, in a form that the benchmark's class describes.
        allow_missing: Score the items that are answered if others are not.

    Raises:
        InputError: The name is unknown, a file cannot be read, or answers are missing.
        ConfigError: The import path cannot be imported.
    """
    benchmark = benchmarks.load(task.name)
    items = list(benchmark.read(task.data, _resolver(task, None)))
    predictions = list(benchmark.read_answers(answers, items))
    answered = [(item, p) for item, p in zip(items, predictions, strict=True) if p is not None]
    if not answered:
        raise InputError(f"{answers}: answers none of the {len(items)} questions of {task.data}; check their ids")
    if len(answered) < len(items) and not allow_missing:
        missing = next(item for item, p in zip(items, predictions, strict=True) if p is None)
        raise InputError(
            f"{answers}: {len(items) - len(answered)} of {len(items)} questions have no answer, the first is "
            f"{missing.id}; answer all of them, since leaving some out changes the score, or give --allow-missing"
        )
    report = benchmark.score([item for item, _ in answered], [p for _, p in answered])
    details: dict[str, Any] = {"benchmark": task.name, "data": str(task.data), "answers": str(answers)}
    if len(answered) < len(items):
        details["not_answered"] = len(items) - len(answered)
    return BenchmarkResult(label=task_labels([task])[0], report=report, details=details)


def measure_engine(
    tasks: Sequence[BenchmarkTask],
    config: EvaluationConfig,
    *,
    judge: JudgeConfig,
    model: Path | str,
    name: str = "",
    role: BenchmarkRole | None,
    folder: Path,
    blind: bool = False,
    build: EngineFactory | None = None,
) -> list[BenchmarkResult]:
    """Measure a model on Ray, all benchmarks with the same actors. What is finished in `folder` is not asked again.

    Args:
        tasks: The benchmarks.
        config: Engine, actors, limits of images, and the share of items that are asked without the image as well.
        judge: Prompts and sampling of the judge.
        model: Model folder.
        name: Name of the model, for the results; default: its folder.
        role: Role of the model; None: the usual one of each benchmark, and of a pairwise judge `pairwise_judge` where
            the benchmark has it.
        folder: Folder of replies and results, on a file system that all nodes share.
        blind: Show no image at all, as a score of what texts alone give away.
        build: Starts the engine that replaces vLLM; `model` then need not exist.

    Raises:
        InputError: A file, the model folder or a prompt cannot be used, no image of a benchmark exists, or a benchmark
            does not have the role.
        ConfigError: `folder` was made with other settings, data or another model.
    """
    import ray.data

    Judge.check(judge)
    path = Path(model) if build else model_folder.locate(str(model))
    plan = _plan(tasks, role, folder / "images", config.no_image_share, blind, pairwise=judge.is_pairwise)
    target = StageFolder(folder / REPLIES)
    engine = config.engine.model_copy(update={"model": str(path)})
    arguments = (engine, judge, config.images, build or VllmGenerator)
    requests = to_table(BenchmarkRequest, plan.requests)
    flow.run(
        target,
        ray.data.from_arrow(requests),
        lambda rows: rows.map_batches(
            BenchmarkActor, fn_constructor_args=arguments, **config.actors.map_batches_args()
        ),
        total=len(plan.requests),
        fingerprint=pairs.fingerprint(config, judge),
        inputs={"requests": plan.digest()} | ({} if build else {"model": model_folder.digest(path)}),
    )
    return _results(plan, target, name or str(model))


def measure_here(
    tasks: Sequence[BenchmarkTask],
    model: BenchmarkModel,
    *,
    name: str,
    role: BenchmarkRole | None,
    folder: Path,
    no_image_share: float,
    blind: bool = False,
) -> list[BenchmarkResult]:
    """Measure a model in this process, such as a served judge. Arguments and errors as for `measure_engine`.

    Args:
        tasks: The benchmarks.
        model: The model.
        name: Name of the model, for the results.
        role: Role of the model; None: the usual one of each benchmark.
        folder: Folder of replies and results.
        no_image_share: Share of the items that are asked without the image as well.
        blind: Show no image at all.
    """
    plan = _plan(tasks, role, folder / "images", no_image_share, blind)
    target = StageFolder(folder / REPLIES)
    target.begin(digest([name]), {"requests": plan.digest()})
    begin, done = time.monotonic(), target.done_ids()
    remaining = [request for request in plan.requests if request.id not in done]
    if target.manifest() is None or remaining:
        with Progress("benchmarks", total=len(plan.requests), done=len(done)) as progress:
            for start in range(0, len(remaining), _CHUNK):
                chunk = remaining[start : start + _CHUNK]
                write_units(target, BenchmarkReply, [_unit(reply) for reply in timed_reply(model, chunk)])
                progress.advance(len(chunk))
        target.finish(seconds=time.monotonic() - begin)
    return _results(plan, target, name)


def check_tasks(tasks: Sequence[BenchmarkTask], role: BenchmarkRole | None) -> None:
    """Read all benchmarks of a run before its first engine starts. Raises InputError as `measure_engine` does."""
    _plan(tasks, role, None, 0.0, blind=False)


def shown_images(
    tasks: Sequence[BenchmarkTask], role: BenchmarkRole | None
) -> dict[str, list[tuple[str | bytes, str]]]:
    """List the images of benchmarks, for decontamination.

    Args:
        tasks: The benchmarks.
        role: Role of the model that they measure; None: the usual one of each.

    Returns:
        Label of each benchmark -> (path, URI or bytes of an image, question about it), each pair once.
    """
    with tempfile.TemporaryDirectory() as store:
        plan = _plan(tasks, role, Path(store), 0.0, blind=False)
        return {
            own.label: [
                (Path(uri).read_bytes() if uri.startswith(store) else uri, question)
                for uri, question in dict.fromkeys((uri, r.question) for r in own.requests for uri in r.images)
            ]
            for own in plan.tasks
        }


def judge_role(judge: JudgeConfig) -> BenchmarkRole:
    """Return the role in which a kind of judge is measured."""
    return BenchmarkRole.PAIRWISE_JUDGE if judge.is_pairwise else BenchmarkRole.JUDGE


def tasks_of(configs: Sequence[benchmarks.BenchmarkConfig]) -> list[BenchmarkTask]:
    """Return the tasks of a recipe's benchmarks."""
    return [BenchmarkTask(name=config.name, data=config.data, images=config.images) for config in configs]


class BenchmarkActor:
    """Ray actor with a judge and policy on its own engine: maps a table of requests to units of replies."""

    def __init__(
        self, engine: VllmConfig, judge: JudgeConfig, limits: ImageLimits, build: EngineFactory = VllmGenerator
    ) -> None:
        self._model = EngineModel(engine, judge, limits, build)

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        replies = timed_reply(self._model, from_table(BenchmarkRequest, rows))
        return units_table(BenchmarkReply, [_unit(reply) for reply in replies])


def _unit(reply: BenchmarkReply) -> Unit[BenchmarkReply]:
    return Unit(id=reply.id, records=(reply,), num_tokens=reply.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskPlan:
    """One benchmark of a run: its items and requests."""

    label: str
    task: BenchmarkTask
    benchmark: Benchmark[Any, Any]
    role: BenchmarkRole
    items: list[Any]
    requests: list[BenchmarkRequest]
    """With ids that begin with the label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunPlan:
    """All benchmarks of a run."""

    tasks: tuple[_TaskPlan, ...]
    blind: bool

    @property
    def requests(self) -> list[BenchmarkRequest]:
        return [request for plan in self.tasks for request in plan.requests]

    def digest(self) -> str:
        return digest([asdict(request) for request in self.requests])


def _plan(
    tasks: Sequence[BenchmarkTask],
    role: BenchmarkRole | None,
    store: Path | None,
    no_image_share: float,
    blind: bool,
    *,
    pairwise: bool = False,
) -> _RunPlan:
    """Read all benchmarks and make their requests, before an engine starts. `store`: folder of images held as bytes."""
    plans = []
    for label, task in zip(task_labels(tasks), tasks, strict=True):
        benchmark = benchmarks.load(task.name)
        own_role = _role(task.name, benchmark, role, pairwise=pairwise)
        items = list(benchmark.read(task.data, _resolver(task, store)))
        requests = benchmark.requests(items, own_role, 0.0 if blind else no_image_share)
        requests = [replace(r, id=f"{label}/{r.id}", images=() if blind else r.images) for r in requests]
        if not blind:
            _check_images(task, requests)
        plans.append(
            _TaskPlan(label=label, task=task, benchmark=benchmark, role=own_role, items=items, requests=requests)
        )
    return _RunPlan(tasks=tuple(plans), blind=blind)


def _role(
    name: str, benchmark: Benchmark[Any, Any], role: BenchmarkRole | None, *, pairwise: bool = False
) -> BenchmarkRole:
    if pairwise and role is None and BenchmarkRole.PAIRWISE_JUDGE in benchmark.roles:
        return BenchmarkRole.PAIRWISE_JUDGE
    if not benchmark.roles:
        raise InputError(f"{name}: asks no model; its answers are rated by another one, whose reviews --answers gives")
    if role is not None and role not in benchmark.roles:
        raise InputError(f"{name}: no benchmark of the role {role}; choose from {', '.join(benchmark.roles)}")
    return role or benchmark.roles[0]


def _check_images(task: BenchmarkTask, requests: Sequence[BenchmarkRequest]) -> None:
    """Raise InputError if none of a benchmark's local images exists."""
    uris = list(dict.fromkeys(uri for request in requests for uri in request.images))
    local = [uri for uri in uris if not addresses.scheme(uri)]
    if local and len(local) == len(uris) and not any(Path(uri).is_file() for uri in local):
        raise InputError(
            f"{task.name}: none of its {len(uris)} images exists, such as {uris[0]}; give their folder (--images), or "
            "show no image (--blind)"
        )


def _results(plan: _RunPlan, target: StageFolder, model: str) -> list[BenchmarkResult]:
    """Score each benchmark from the replies of the run, and write its result."""
    replies = {reply.id: reply for reply in target.records(BenchmarkReply)}
    results = []
    for own in plan.tasks:
        of_task = [replies[request.id] for request in own.requests]
        by_id = {reply.id.removeprefix(f"{own.label}/"): reply for reply in of_task}
        report = own.benchmark.score(own.items, own.benchmark.predictions(own.items, own.role, by_id))
        details = {
            "benchmark": own.task.name,
            "data": str(own.task.data),
            "model": model,
            "role": own.role.value,
            "blind": plan.blind,
            "statuses": dict(sorted(Counter(reply.status for reply in of_task).items())),
            "cost": {
                "requests": len(of_task),
                "tokens": sum(reply.num_tokens for reply in of_task),
                "seconds": round(sum(reply.seconds for reply in of_task), 3),
            },
        }
        result = BenchmarkResult(label=own.label, report=report, details=details)
        write_json(target.path.parent / f"{own.label}.json", result.as_json())
        results.append(result)
    return results


def _resolver(task: BenchmarkTask, store: Path | None) -> ImageResolver:
    folder = task.data if task.data.is_dir() else task.data.parent
    return ImageResolver(root=task.images or str(folder.absolute()), store=store)


def task_labels(tasks: Sequence[BenchmarkTask]) -> list[str]:
    """Return a unique file name for each task: the benchmark's, with the name of its data if it occurs twice.

    Raises InputError if a benchmark is named twice with the same data.
    """
    names = [task.name.replace(":", ".") for task in tasks]
    counts = Counter(names)
    labels = [n if counts[n] == 1 else f"{n}-{task.data.stem}" for n, task in zip(names, tasks, strict=True)]
    if len(set(labels)) < len(labels):
        repeated = next(label for label, count in Counter(labels).items() if count > 1)
        raise InputError(f"{repeated} is named twice; give each benchmark and data file once")
    return labels
