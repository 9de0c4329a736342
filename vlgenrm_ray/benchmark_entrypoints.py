"""Entry points of `vlgenrm benchmark` and `best-of-n`: scores of models and of stored answers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vlgenrm_ray import config, plan, plugins, recipe
from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.model_settings import with_model_settings
from vlgenrm_ray.serving.auth import API_TOKEN

if TYPE_CHECKING:
    from vlgenrm_ray.evaluation.benchmark_models import BenchmarkModel
    from vlgenrm_ray.evaluation.benchmark_run import BenchmarkResult, BenchmarkTask
    from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkRole


def score_stored_answers(
    names: Sequence[str],
    data: Sequence[Path],
    answers: Sequence[Path],
    *,
    allow_missing: bool = False,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Score stored answers on benchmarks, and print the results.

    Args:
        names: Benchmarks: keys of `BENCHMARKS`, or import paths.
        data: File or folder of the questions of each of them.
        answers: Stored answers to each of them.
        allow_missing: Score the questions that are answered if others are not.
        out: JSON file for the results.

    Returns:
        The results as JSON, in the order of `names`.

    Raises:
        InputError: A name is unknown, a file cannot be read, or the numbers of names and files differ.
    """
    from vlgenrm_ray.evaluation import benchmark_run

    tasks = _benchmark_tasks(names, data)
    if len(answers) != len(tasks):
        raise InputError(f"{len(answers)} --answers for {len(tasks)} benchmarks; give one for each, in their order")
    results = [
        benchmark_run.score_answers(task, path, allow_missing=allow_missing)
        for task, path in zip(tasks, answers, strict=True)
    ]
    return _print_benchmarks(results, out)


def run_benchmarks(
    names: Sequence[str],
    data: Sequence[Path],
    *,
    images: Sequence[str] = (),
    model: str = "",
    url: str = "",
    judge: str = "",
    role: str = "",
    path: Path | None = None,
    overrides: Sequence[str] = (),
    blind: bool = False,
    run: Path | None = None,
    out: Path | None = None,
    address: str | None = None,
) -> list[dict[str, Any]]:
    """Measure a model on benchmarks, and print the results. Exactly one of `model`, `url` and `judge` is required.

    Args:
        names: Benchmarks: keys of `BENCHMARKS`, or import paths.
        data: File or folder of the questions of each of them.
        images: Folder or URI of the images of each of them, or one for all; default: the folders of `data`.
        model: Model folder, hub name, or `pack:vlm`, measured on Ray.
        url: Address of a served judge. Its token comes from VLGENRM_API_TOKEN.
        judge: Import path `package.module:Name` of a `BenchmarkModel`, created without arguments in this process.
        role: judge, pairwise_judge or policy; default: that of each benchmark and the kind of judge that the model, or
            the service, says it is.
        path: Recipe whose judge, engine and actors are used; default: shapes.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        blind: Show no image.
        run: Folder of replies and results, from which an interrupted run continues; default: a temporary one.
        out: JSON file for the results.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.

    Returns:
        The results as JSON, in the order of `names`.

    Raises:
        VlGenRMError: See `errors.py`.
    """
    import tempfile

    from vlgenrm_ray.evaluation import benchmark_run
    from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkRole

    tasks = _benchmark_tasks(names, data, images)
    settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
    own_role = BenchmarkRole(role) if role else _served_role(url) if url else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = (run or Path(temporary)).absolute()
        if model:
            located = model_folder.locate(recipe.resolve(model))
            requests = [request for request in plan.reward_requests(settings) if request.stage == "evaluation"]
            resources.check_resources(requests, connection.connect(address, offline=True))
            located = model_folder.copy_for_nodes(located, recipe.resolve(model), folder)
            results = benchmark_run.measure_engine(
                tasks,
                settings.evaluation,
                judge=with_model_settings(settings.trained_judge, located),
                model=located,
                name=model,
                role=own_role,
                folder=folder,
                blind=blind,
            )
        else:
            results = benchmark_run.measure_here(
                tasks,
                _model_here(url, judge, settings),
                name=url or judge,
                role=own_role,
                folder=folder,
                no_image_share=settings.evaluation.no_image_share,
                blind=blind,
            )
    return _print_benchmarks(results, out)


def best_of_n(
    *,
    data: Path | None = None,
    policy: str = "pack:vlm",
    n: int = 64,
    num_questions: int = 64,
    images: Sequence[str] = (),
    model: str = "",
    url: str = "",
    judge: str = "",
    path: Path | None = None,
    overrides: Sequence[str] = (),
    run: Path,
    out: Path | None = None,
    address: str | None = None,
) -> list[dict[str, Any]]:
    """Measure how good the best of n candidates is that a judge picks, on the user's candidates or on shapes.

    Args:
        data: File of candidates with true scores (see `benchmarks/best_of_n.py`). None: candidates are sampled for
            held-out questions of the embedded world, and their score is the ground truth, 1 or 0.
        policy: Model folder, hub name or `pack:vlm` that answers those questions.
        n: Candidates per question.
        num_questions: Number of those questions.
        images: See `run_benchmarks`, as for the arguments not named here.
        model: See `run_benchmarks`.
        url: See `run_benchmarks`.
        judge: See `run_benchmarks`.
        path: Recipe; also its held-out split and seed, and the sampling of its first generator.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        run: Folder of candidates, replies and results, from which an interrupted run continues.
        out: JSON file for the results.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.

    Returns:
        The results as JSON. The curves are drawn in `<run>/report.html`.
    """
    from vlgenrm_ray.report import html

    run = run.absolute()
    if data is None:
        settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
        data = _sample_shapes_candidates(settings, policy, n, num_questions, run, address)
    results = run_benchmarks(
        ["best_of_n"],
        [data],
        images=images,
        model=model,
        url=url,
        judge=judge,
        path=path,
        overrides=overrides,
        run=run / "best-of-n",
        out=out,
        address=address,
    )
    Console(highlight=False).print(f"report {html.write_report([run])}", markup=False, soft_wrap=True)
    return results


def _sample_shapes_candidates(
    settings: RunConfig, policy: str, n: int, num_questions: int, run: Path, address: str | None
) -> Path:
    """Sample candidates for questions of the embedded world; return the file of candidates with their truth."""
    import json

    from vlgenrm_ray.data.files import write_text
    from vlgenrm_ray.data.store import StageFolder
    from vlgenrm_ray.engines.contracts import Sampling
    from vlgenrm_ray.evaluation import candidates
    from vlgenrm_ray.records import Response
    from vlgenrm_ray.shapes import world

    generator = settings.responses.generators[0]
    located = model_folder.locate(recipe.resolve(policy))
    requests = [request for request in plan.reward_requests(settings) if request.stage == "responses"]
    resources.check_resources(requests, connection.connect(address, offline=True))
    folder = str(model_folder.copy_for_nodes(located, recipe.resolve(policy), run))
    seed = settings.seed if settings.heldout.seed is None else settings.heldout.seed
    questions = list(world.questions(run / "images", seed=seed, split="heldout", count=num_questions))
    target = StageFolder(run / candidates.STAGE)
    candidates.sample(
        questions,
        generator.engine.model_copy(update={"model": folder}),
        Sampling(n=n, temperature=generator.temperature, top_p=generator.top_p, max_tokens=generator.max_tokens),
        actors=generator.actors,
        limits=settings.responses.images,
        target=target,
        seed=settings.seed,
    )
    texts: dict[str, list[str]] = {}
    for response in target.records(Response):
        texts.setdefault(response.question.id, []).append(response.text)
    rows = [
        {
            "id": question.id,
            "image": question.image.uri,
            "question": question.text,
            "candidates": texts[question.id],
            "scores": [float(world.response_is_true(question, text)) for text in texts[question.id]],
        }
        for question in questions
        if question.id in texts
    ]
    file = run / "candidates.jsonl"
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def _model_here(url: str, judge: str, settings: RunConfig) -> "BenchmarkModel":
    from vlgenrm_ray.evaluation.benchmark_models import BenchmarkModel, ServedModel
    from vlgenrm_ray.judge.remote import RemoteJudge

    if url:
        limits = settings.evaluation.images
        return ServedModel(RemoteJudge(url, token=os.environ.get(API_TOKEN), limits=limits), limits)
    model: BenchmarkModel = plugins.load(judge, {}, "--judge")()
    return model


def _served_role(url: str) -> "BenchmarkRole":
    """Ask a service for its kind of judge; return the role in which it is measured."""
    from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkRole
    from vlgenrm_ray.judge.remote import RemoteJudge

    with RemoteJudge(url, token=os.environ.get(API_TOKEN)) as judge:
        return BenchmarkRole.PAIRWISE_JUDGE if judge.is_pairwise() else BenchmarkRole.JUDGE


def _benchmark_tasks(names: Sequence[str], data: Sequence[Path], images: Sequence[str] = ()) -> "list[BenchmarkTask]":
    from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask

    if len(data) != len(names):
        raise InputError(f"{len(data)} --data for {len(names)} benchmarks; give one for each, in their order")
    if len(images) not in (0, 1, len(names)):
        raise InputError(f"{len(images)} --images for {len(names)} benchmarks; give one for each, or one for all")
    folders = list(images) * len(names) if len(images) == 1 else list(images) or [""] * len(names)
    return [BenchmarkTask(name=n, data=path, images=i) for n, path, i in zip(names, data, folders, strict=True)]


def _print_benchmarks(results: "Sequence[BenchmarkResult]", out: Path | None) -> list[dict[str, Any]]:
    from vlgenrm_ray.data.files import write_json
    from vlgenrm_ray.report import benchmark_tables

    console = Console(highlight=False)
    rows = [result.as_json() for result in results]
    for row in rows:
        benchmark_tables.print_result(console, row)
    if out is not None:
        write_json(out, {"results": rows})
        console.print(f"written {out}", markup=False, soft_wrap=True)
    return rows
