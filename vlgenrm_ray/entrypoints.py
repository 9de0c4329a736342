"""Entry points of `vlgenrm` and of the scripts in jobs/: one function per command.

Each reads a recipe, checks the cluster, runs one pipeline and prints its result. `cli` only parses arguments.
"""

import ipaddress
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from vlgenrm_ray import co_training, config, forecast, gpu_smoke, pipeline, plan, policy_pipeline, recipe
from vlgenrm_ray.ablation import config as ablation_config
from vlgenrm_ray.ablation import run as ablation_run
from vlgenrm_ray.ablation import tables
from vlgenrm_ray.ablation.plan import select_cells
from vlgenrm_ray.ablation.run import CellOutcome
from vlgenrm_ray.cluster import connection, resources, run_folder
from vlgenrm_ray.cluster.machine import free_port
from vlgenrm_ray.cluster.resources import ResourceRequest
from vlgenrm_ray.config import PolicyRunConfig, RunConfig
from vlgenrm_ray.curation import inspection, inspection_view
from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation import benchmark_run
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkRole
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.failed_rewards import substitute_from_environment
from vlgenrm_ray.judge.model_settings import read_settings, with_model_settings, write_settings
from vlgenrm_ray.policy import trackers
from vlgenrm_ray.report import curves, html, policy_summary, summary
from vlgenrm_ray.report.html import ablation_page
from vlgenrm_ray.reward.rounds import RoundResult
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.serving.config import ServingConfig

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"


def shipped_recipe(name: str) -> Path:
    """Return the path of a recipe of this repository. Raises InputError if the package was installed without it."""
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        raise InputError(f"{path}: no such recipe; clone the repository and run its cluster/setup.sh")
    return path


# -- runs ------------------------------------------------------------------------------------------------------------


def train_reward(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
    until: pipeline.PreparationStage | None = None,
) -> dict[str, Any]:
    """Run, or continue, a reward-model recipe: curation, then rounds of critiques, selection, training, evaluation.

    Args:
        path: Recipe.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        run: Run folder; default on one machine: `runs/<name of the recipe>`.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.
        dry_run: Print the resolved recipe, the counts of its inputs and the resources it needs, and stop.
        until: Last stage to run, of those before the first round; default: the whole recipe.

    Returns:
        The content of `summary.json`; empty for a dry run.
    """
    settings = config.load(path, tuple(overrides))
    console = Console(highlight=False)
    requests = plan.reward_requests(settings)
    inputs = _pools(settings)
    if until is not None and not until.startswith("heldout"):
        del inputs["heldout"]
    _check_inputs(console, inputs, None if dry_run else run)
    benchmark_run.check_tasks(benchmark_run.tasks_of(settings.benchmarks), benchmark_run.judge_role(settings.judge))
    plan.check_engines(settings)
    if dry_run:
        _print_plan(console, settings, requests, plan.reward_learners(settings), address)
        return {}
    folder = _prepare_cluster(requests, address, _reward_models(settings), run=run, recipe_path=path)
    _print_start(console, folder, path, settings.seed)
    results = pipeline.run(settings, folder, on_round=lambda result: _print_round(console, result), until=until)
    console.print(summary.stages_table(results))
    if results["rounds"]:
        console.print(summary.rounds_table(results))
        _print_best(console, folder, results)
    _print_report(console, folder)
    return results


def print_forecast(
    path: Path,
    *,
    sample: Path,
    overrides: Sequence[str] = (),
    num_gpus: float | None = None,
    num_rows: int | None = None,
    price: float,
) -> None:
    """Print the forecast of a reward-model run. Nothing is started.

    Args:
        path: Recipe.
        sample: Run folder of a finished small run of the recipe.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        num_gpus: GPUs of the cluster; default: as many as the recipe's largest stage uses.
        num_rows: Rows of the pool; default: `pool.count`.
        price: Dollars for a GPU and hour.
    """
    costs = forecast.forecast(config.load(path, tuple(overrides)), sample, num_gpus=num_gpus, num_rows=num_rows)
    paid_gpus = max(cost.num_gpus for cost in costs) if num_gpus is None else num_gpus
    Console(highlight=False).print(forecast.forecast_table(costs, num_gpus=paid_gpus, price=price))


def train_policy(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train, or continue to train, the policy of a recipe against its rewards.

    Arguments as for `train_reward`. Returns the content of `policy/summary.json`; empty for a dry run.
    """
    settings = config.load_policy(path, tuple(overrides))
    console = Console(highlight=False)
    requests = plan.policy_requests(settings)
    _check_inputs(console, _pools(settings), None if dry_run else run)
    benchmark_run.check_tasks(benchmark_run.tasks_of(settings.benchmarks), BenchmarkRole.POLICY)
    plan.check_engines(settings)
    if dry_run:
        _print_plan(console, settings, requests, plan.policy_learners(settings), address)
        return {}
    trackers.check_installed(settings.policy.trackers)
    models = [settings.base, *(reward.judge.engine.model for reward in settings.policy.rewards if reward.judge)]
    models += [settings.judge_service.model] if settings.judge_service else []
    folder = _prepare_cluster(requests, address, models, run=run, recipe_path=path)
    _print_start(console, folder, path, settings.seed)
    results = policy_pipeline.run(settings, folder)
    for line in policy_summary.summary_lines(results, folder):
        console.print(line, markup=False, soft_wrap=True)
    _print_report(console, folder)
    return results


def co_train(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> list[co_training.IterationResult]:
    """Run, or continue, a co-training recipe. Arguments as for `train_reward`. Returns the result of each iteration."""
    settings = config.load_co_training(path, tuple(overrides))
    console = Console(highlight=False)
    requests = plan.co_training_requests(settings)
    inputs = {f"reward.{name}": source for name, source in _pools(settings.reward).items()}
    inputs |= {f"policy.{name}": source for name, source in _pools(settings.policy).items()}
    _check_inputs(console, inputs)
    reward = settings.reward
    benchmark_run.check_tasks(benchmark_run.tasks_of(reward.benchmarks), benchmark_run.judge_role(reward.judge))
    benchmark_run.check_tasks(benchmark_run.tasks_of(settings.policy.benchmarks), BenchmarkRole.POLICY)
    plan.check_engines(settings.reward)
    plan.check_engines(settings.policy)
    if dry_run:
        learners = [*plan.reward_learners(settings.reward), *plan.policy_learners(settings.policy)]
        _print_plan(console, settings, requests, learners, address)
        return []
    trackers.check_installed(settings.policy.policy.trackers)
    models = [*_reward_models(settings.reward), settings.policy.base]
    folder = _prepare_cluster(requests, address, models, run=run, recipe_path=path)
    _print_start(console, folder, path, settings.reward.seed)
    results = co_training.run(settings, folder, on_iteration=lambda result: _print_iteration(console, result))
    _print_report(console, folder)
    return results


def ablate(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    only: Sequence[str] = (),
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run, or continue, the cells of an ablation, and print their accuracies and costs.

    Args:
        path: Recipe of the ablation.
        overrides: Settings that replace the recipe's; those of the base recipe as `recipe.a.b=value`.
        run: Run folder; default on one machine: `runs/<name of the recipe>`.
        only: Names of the cells to run, or patterns; default: all.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.
        dry_run: Print the cells and the stages that they share, and stop.

    Returns:
        The content of `ablation.json`; empty for a dry run.
    """
    settings = ablation_config.load(path, overrides)
    plans = ablation_run.plan_all(settings)
    select_cells([plan.cell for plan in plans], only)
    console = Console(highlight=False)
    if dry_run:
        console.print(tables.plan_table(plans))
        return {}
    requests = [request for cell in plans for request in plan.reward_requests(cell.config)]
    models = [model for cell in plans for model in _reward_models(cell.config)]
    folder = _prepare_cluster(list(dict.fromkeys(requests)), address, models, run=run, recipe_path=path)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    console.print(f"run {folder}  recipe {path.name}  {len(plans)} cells and seeds", markup=False)
    results = ablation_run.run(settings, folder, only=only, on_cell=lambda outcome: _print_cell(console, outcome))
    console.print(tables.accuracy_table(results))
    console.print(tables.cost_table(results))
    for failure in results["failures"]:
        console.print(f"failed: {failure['cell']}, seed {failure['seed']}: {failure['error']}", markup=False)
    console.print(f"report {ablation_page.write_page(folder)}", markup=False, soft_wrap=True)
    return results


def _print_cell(console: Console, outcome: CellOutcome) -> None:
    name = f"{outcome.plan.cell.name}, seed {outcome.plan.seed}"
    if outcome.result is None:
        console.print(f"{name}: failed: {outcome.error}", markup=False)
        return
    accuracies = [f"{statistics.fmean(m.scores.outcomes().values()):.3f}" for m in outcome.result.rounds]
    console.print(f"{name}: accuracy {' -> '.join(accuracies)}", markup=False)


def draw_curves(target: Path, runs: Sequence[str]) -> None:
    """Draw the training curves of policies, each "LABEL=RUN[,RUN...]", into the picture `target`."""
    curves.draw_curves(curves.parse_runs(runs), target)


# -- experts ---------------------------------------------------------------------------------------------------------


def calibrate_experts(
    path: Path,
    *,
    truth: Path,
    images: Path | None = None,
    out: Path | None = None,
    folds: int = 5,
    target: float = 0.93,
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> Path:
    """Calibrate the detectors of a recipe on labelled images, and print the quality of their verdicts.

    Args:
        path: Recipe.
        truth: Labelled images, see `experts.labels`.
        images: Folder of the images, if it is not beside the labels.
        out: File to write; default: `<recipe>.calibration.yaml` beside the recipe.
        folds: Folds of the cross-validation.
        target: Share of right verdicts that is aimed at.
        seed: Seed of claims and folds.
        overrides: Settings that replace the recipe's, as `a.b=value`.

    Returns:
        The written file.
    """
    from vlgenrm_ray.experts.calibration import write_calibration
    from vlgenrm_ray.experts.fitting import calibrate

    settings = config.load(path, tuple(overrides)).experts
    calibration = calibrate(settings, truth, images=images, folds=folds, seed=seed, target=target)
    target_file = out or path.with_suffix(".calibration.yaml")
    write_calibration(calibration, target_file)
    console = Console(highlight=False)
    console.print(summary.reliability_table(calibration))
    console.print(
        f"{target_file}: apply it with  --set experts.calibration={target_file}", markup=False, soft_wrap=True
    )
    return target_file


# -- one model -------------------------------------------------------------------------------------------------------


def evaluate(
    path: Path, *, model: str, overrides: Sequence[str] = (), run: Path, address: str | None = None
) -> Mapping[str, Any]:
    """Judge the held-out pairs of a recipe with a model.

    Args:
        path: Recipe.
        model: Model folder, hub name, or `pack:vlm`.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        run: Folder for the pairs and the judgements.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.

    Returns:
        The metrics of the evaluation stage, which are printed as well.
    """
    settings = config.load(path, tuple(overrides))
    folder = model_folder.locate(recipe.resolve(model))
    judge = with_model_settings(settings.trained_judge, folder)
    manifest = _judge_heldout(settings, judge, folder, recipe.resolve(model), run, address).complete()
    Console(highlight=False).print(summary.evaluation_table(manifest.metrics))
    return manifest.metrics


def calibrate(
    path: Path, *, model: str, overrides: Sequence[str] = (), run: Path, address: str | None = None
) -> Mapping[str, Any]:
    """Calibrate the rewards of a judge on the held-out pairs of a recipe, and write the calibration into its folder.

    Report accuracies and calibration on other pairs than these: choose them by `heldout.seed` or `heldout.path`.

    Args:
        path: Recipe.
        model: Model folder, or `pack:vlm`.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        run: Folder for the pairs and the judgements.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.

    Returns:
        The quality of the calibration, which is printed as well.
    """
    from vlgenrm_ray.evaluation import pairs, reward_calibration

    settings = config.load(path, tuple(overrides))
    folder = model_folder.locate(recipe.resolve(model))
    # The fit needs rewards as the model gives them, without an earlier calibration.
    judge = with_model_settings(settings.trained_judge, folder)
    judge = judge.model_copy(update={"reward_temperature": 1.0, "reward_bias": 0.0})
    evaluation = _judge_heldout(settings, judge, folder, recipe.resolve(model), run, address)
    calibration = reward_calibration.calibrate(pairs.results_with_image(evaluation))
    fitted = {"reward_temperature": calibration.temperature, "reward_bias": calibration.bias}
    heldout = {"pairs": evaluation.complete().inputs["preferences"]} | calibration.as_json()
    write_settings(read_settings(folder).model_copy(update=fitted | {"calibration": heldout}), folder)
    console = Console(highlight=False)
    console.print(summary.calibration_table(calibration))
    console.print(f"written {folder / model_folder.JUDGE_SETTINGS}", markup=False, soft_wrap=True)
    return calibration.as_json()


def _judge_heldout(
    settings: RunConfig, judge: JudgeConfig, model: Path, model_name: str, run: Path, address: str | None
) -> StageFolder:
    """Judge the held-out pairs of a recipe in a folder of their own; return the finished evaluation stage.

    `model_name` is the path or hub name of `model`.
    """
    from vlgenrm_ray.curation import pool
    from vlgenrm_ray.evaluation import heldout, pairs

    _check_inputs(Console(highlight=False), {"heldout": settings.heldout}, run)
    requests = [request for request in plan.reward_requests(settings) if request.stage == "evaluation"]
    resources.check_resources(requests, connection.connect(address, offline=True))
    model = model_folder.copy_for_nodes(model, model_name, run)
    labelled, target, evaluation = (StageFolder(run / name) for name in ("heldout-pool", "heldout", "evaluation"))
    pool.run(settings.heldout, target=labelled)
    heldout.run(source=labelled, target=target)
    pairs.run(settings.evaluation, judge=judge, model=model, source=target, target=evaluation)
    return evaluation


def score(
    image: Path, question: str, response: str, *, model: str, path: Path | None, num_critiques: int | None
) -> None:
    """Print the reward and the critiques of one response, judged in this process without Ray.

    Args:
        image: Image file.
        question: Question about the image.
        response: Response to be judged.
        model: Model folder, hub name, or `pack:vlm`.
        path: Recipe whose judge and engine are used; default: shapes.
        num_critiques: Critiques to sample; default: the recipe's.
    """
    from vlgenrm_ray.data import images
    from vlgenrm_ray.data.images import ImageError
    from vlgenrm_ray.engines.vllm import VllmGenerator
    from vlgenrm_ray.judge.judge import Judge, JudgeInput

    settings = config.load(path or shipped_recipe("shapes"))
    limits = settings.evaluation.images
    try:
        ref = images.probe(str(image), limits)
    except ImageError as error:
        raise InputError(f"IMAGE: {error.detail}") from error
    judge_config = settings.judge.model_copy(update={"num_critiques": num_critiques} if num_critiques else {})
    folder = model_folder.locate(recipe.resolve(model))
    judge_config = with_model_settings(judge_config.of_pointwise_model(folder), folder)
    engine = VllmGenerator(settings.evaluation.engine.model_copy(update={"model": str(folder)}))
    judge = Judge(judge_config, engine, limits)
    (judgement,) = judge.score([JudgeInput(id="cli", images=(ref,), question=question, response=response)])
    console = Console(highlight=False)
    reward = "none" if judgement.reward is None else f"{judgement.reward:.4f}"
    console.print(
        f"reward {reward}  status {judgement.status}  critiques {len(judgement.critiques)}  "
        f"verdict mass {judgement.verdict_mass:.3f}"
    )
    for number, critique in enumerate(judgement.critiques):
        console.print(f"\n-- critique {number}\n{critique.text}", markup=False)


def serve(
    model: str,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    replicas: int | str | None = None,
    image_roots: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    wait: bool = True,
) -> str:
    """Serve a judge over HTTP.

    Args:
        model: Model folder, hub name, or `pack:vlm`.
        path: Recipe whose judge and engine are used; default: shapes.
        overrides: Settings that replace the recipe's, as `a.b=value`.
        replicas: Number of engines, or "auto"; default: the recipe's.
        image_roots: Folders whose image files requests may name.
        host: Address to listen on.
        port: TCP port to listen on.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.
        wait: Block until interrupted.

    Returns:
        The URL of the service.
    """
    from vlgenrm_ray.serving import launch

    settings = serving_config(model, path=path, overrides=overrides, replicas=replicas, image_roots=image_roots)
    connection.connect(address, offline=True)
    run_folder.check_model_visible(Path(settings.engine.model))
    url = launch.start(settings, host=host, port=port)
    console = Console(highlight=False)
    console.print(
        f"serving {settings.engine.model} at {url}  docs: {url}/docs  ready: {url}/ready", markup=False, soft_wrap=True
    )
    if not (settings.tokens.api or _is_loopback(host)):
        console.print(
            f"warning: {host} can be reached from other machines and no token is set: whoever reaches port {port} "
            "can use the judge; set VLGENRM_API_TOKEN, or --host 127.0.0.1",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if wait:
        launch.wait()
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serving_config(
    model: str,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    replicas: int | str | None = None,
    image_roots: Sequence[str] = (),
) -> ServingConfig:
    """Return the configuration of a service of `model`; arguments as for `serve`.

    ApiTokens come from the environment variables VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN. The variable
    VLGENRM_FAILED_REWARD takes precedence over `serving.failed_reward`.
    """
    settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
    folder = model_folder.locate(recipe.resolve(model))
    changes: dict[str, Any] = {"tokens": ApiTokens.from_environment()}
    if (substitute := substitute_from_environment()) is not None:
        changes["failed_reward"] = substitute
    if replicas is not None:
        changes["replicas"] = replicas if replicas == "auto" else int(replicas)
    if image_roots:
        changes["image_roots"] = tuple(image_roots)
    serving = config.serving(settings, **changes)
    engine = serving.engine.model_copy(update={"model": str(folder)})
    return serving.model_copy(update={"engine": engine, "judge": serving.judge.of_model(folder)})


def inspect(path: str, *, overrides: Sequence[str] = (), as_json: bool = False) -> None:
    """Print what a data set is and how to use it. No engine and no Ray is started.

    Args:
        path: File, folder or pattern; local or a URI.
        overrides: Settings of the source, as `columns.question=ask`.
        as_json: Print the report as JSON.
    """
    from vlgenrm_ray.curation.sources.sample import FILES

    source = recipe.build_with(PoolConfig, {"source": FILES, "path": path}, overrides)
    reports = inspection.inspect(source)
    if as_json:
        print(inspection_view.reports_json(reports))
    else:
        inspection_view.print_reports(Console(highlight=False), reports)


def run_doctor(path: Path | None, *, overrides: Sequence[str] = (), address: str | None = None) -> int:
    """Print the doctor's checks, with those of a recipe if one is given. Return 0 if none failed, else 1."""
    from vlgenrm_ray.cluster import doctor

    requests = plan.reward_requests(config.load(path, tuple(overrides))) if path else []
    return doctor.report(doctor.diagnose(requests, address=address))


def run_gpu_smoke(folder: Path, *, address: str | None = None) -> int:
    """Run every part of the package on the embedded models, and print what works.

    Args:
        folder: New folder for the runs, on a file system that all nodes share.
        address: Ray cluster; default: RAY_ADDRESS, else a local one.

    Returns:
        0 if no part failed, else 1.

    Raises:
        InputError: The folder is not empty, or the package was installed without recipes.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--run {folder}: it has files, and finished parts would not be run again; name a new folder")
    recipes = shipped_recipe("shapes").parent
    cluster = connection.connect(address, offline=True)
    console = Console(highlight=False)
    console.print(f"{cluster}; runs in {folder}", markup=False, soft_wrap=True)
    smoke = gpu_smoke.SmokeRun(
        folder=folder.absolute(), recipes=recipes, num_gpus=int(cluster.num_gpus), port=free_port()
    )
    results = gpu_smoke.run(smoke, lambda result: _print_smoke_result(console, result))
    counts = ", ".join(f"{sum(r.status is status for r in results)} {status}" for status in gpu_smoke.SmokeStatus)
    console.print(f"{counts}; {sum(result.seconds for result in results):.0f} s")
    return gpu_smoke.exit_code(results)


def _print_smoke_result(console: Console, result: gpu_smoke.SmokeResult) -> None:
    colour = {"ok": "green", "failed": "bold red", "skipped": "yellow"}[result.status]
    console.print(f"[{colour}]{result.status:8}[/]", end="")
    console.print(f"{result.seconds:5.0f} s  {result.part}: {result.detail}", markup=False)


# -- shared steps ----------------------------------------------------------------------------------------------------


def check_cluster(requests: Sequence[ResourceRequest], address: str | None, models: Sequence[str]) -> None:
    """Connect to Ray and check the requests. Without hub names among the models, workers never contact the hub."""
    offline = all(Path(model).is_dir() for model in models)
    resources.check_resources(requests, connection.connect(address, offline=offline))


def _prepare_cluster(
    requests: Sequence[ResourceRequest],
    address: str | None,
    models: Sequence[str],
    *,
    run: Path | None,
    recipe_path: Path,
) -> Path:
    """Connect to Ray, check the requests, and return the run folder, which all nodes see."""
    check_cluster(requests, address, models)
    folder = run_folder.choose(run, recipe_path, num_nodes=len(connection.describe_cluster().nodes))
    run_folder.check_visible(folder)
    return folder


def _pools(settings: RunConfig | PolicyRunConfig) -> dict[str, PoolConfig]:
    return {"pool": settings.pool, "heldout": settings.heldout}


def _check_inputs(console: Console, inputs: Mapping[str, PoolConfig], run: Path | None = None) -> None:
    """Sample the inputs of a run before an engine starts, and print what was read. Raises InputError.

    Args:
        console: Console to print to.
        inputs: Section of the recipe -> source.
        run: Run folder. An input that was read completely by an earlier attempt is not read again.
    """
    stages = {"pool": "pool", "heldout": "heldout-pool"}
    if run is not None:
        inputs = {name: c for name, c in inputs.items() if StageFolder(run / stages[name]).manifest() is None}
    reports = inspection.check_inputs(inputs)
    if reports:
        console.print(inspection_view.inputs_table(reports))
    for line in inspection_view.input_notes(reports):
        console.print(line, markup=False)


def _reward_models(settings: RunConfig) -> list[str]:
    return [settings.base, *(generator.engine.model for generator in settings.responses.generators)]


def _print_plan(
    console: Console,
    settings: BaseModel,
    requests: Sequence[ResourceRequest],
    learners: Sequence[plan.LearnerPlan],
    address: str | None,
) -> None:
    console.print(recipe.dump(settings), markup=False)
    console.print(plan.request_table(requests, connection.connect(address)))
    stage, gpus = max(plan.peak_gpus(requests).items(), key=lambda item: item[1])
    if gpus:
        console.print(f"GPUs at once: {gpus:g}, in stage {stage}")
    for learner in learners:
        if learner.num_gpus:
            console.print(plan.memory_table(learner))


def _print_start(console: Console, folder: Path, path: Path, seed: int) -> None:
    # The output of a job is not a terminal; with line buffering its log is up to date.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    console.print(f"run {folder}  recipe {path.name}  seed {seed}", markup=False)


def _print_round(console: Console, result: RoundResult) -> None:
    name = f"round {result.round}" if result.round else "base"
    benchmarks = "".join(f", {benchmark} {value:.3f}" for benchmark, value in result.benchmarks.items())
    console.print(f"{name}: held-out pairwise accuracy {result.accuracy:.3f}{benchmarks}")


def _print_best(console: Console, folder: Path, results: Mapping[str, Any]) -> None:
    best = max(results["rounds"], key=lambda r: (r["pairwise_accuracy"], -r["round"]))
    if gain := best.get("gain"):
        console.print(
            f"best round {best['round']}: {gain['value'] * 100:+.1f} points over the base "
            f"(95 %: {gain['ci95'][0] * 100:+.1f} to {gain['ci95'][1] * 100:+.1f}, {gain['num']} pairs)"
        )
    console.print(f"{results['seconds']:.0f} s in all; summary.json, lineage and models are in {folder}", markup=False)


def _print_report(console: Console, folder: Path) -> None:
    console.print(f"report {html.write_report([folder])}", markup=False, soft_wrap=True)


def _print_iteration(console: Console, result: co_training.IterationResult) -> None:
    first, best = (result[name]["value"] for name in ("first", "best"))
    policy = "" if first is None else f"; policy's held-out value {first:.3f} -> {best:.3f}"
    console.print(
        f"iteration {result['iteration']}: judge's held-out pairwise accuracy {result['accuracy']:.3f}{policy}"
    )
    if error := result["swap_error"]:
        console.print(
            f"iteration {result['iteration']}: the previous judge stays in service: {error}",
            markup=False,
        )
