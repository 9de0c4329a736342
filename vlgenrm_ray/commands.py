"""What `vlgenrm` and the scripts in jobs/ call: read the recipe, connect, do the work, print."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vlgenrm_ray import co_training, config, pipeline, plan, policy_pipeline, recipe
from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy import trackers
from vlgenrm_ray.report import curves, policy_summary, summary
from vlgenrm_ray.reward.rounds import RoundResult
from vlgenrm_ray.serving.auth import Tokens
from vlgenrm_ray.serving.config import ServingConfig

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"


def shipped_recipe(name: str) -> Path:
    """A recipe of this repository. Raises InputError where the package was installed without it."""
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        raise InputError(f"{path}: not there; clone the repository and run its cluster/setup.sh")
    return path


def train_reward(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make, or finish, the run of a recipe; print how it goes and what came of it. Returns the summary."""
    settings = config.load(path, tuple(overrides))
    folder = run or Path("runs") / path.stem
    console = Console(highlight=False)
    asked = plan.asks(settings)
    if dry_run:
        console.print(recipe.dump(settings), markup=False)
        console.print(plan.table(asked, connection.connect(address)))
        return {}
    _begin(console, folder, path, settings.seed)
    resources.check_resources(asked, connection.connect(address, offline=_all_here(_models(settings))))
    done = pipeline.run(settings, folder, on_round=lambda finished: _tell(console, finished))
    console.print(summary.stages_table(done))
    console.print(summary.rounds_table(done))
    _conclude(console, folder, done)
    return done


def train_policy(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train, or finish training, a recipe's policy; print how it goes and what came of it. Returns the summary."""
    settings = config.load_policy(path, tuple(overrides))
    folder = run or Path("runs") / path.stem
    console = Console(highlight=False)
    asked = plan.policy_asks(settings)
    if dry_run:
        console.print(recipe.dump(settings), markup=False)
        console.print(plan.table(asked, connection.connect(address)))
        return {}
    trackers.check_installed(settings.policy.trackers)
    _begin(console, folder, path, settings.seed)
    models = [settings.base, *(one.judge.engine.model for one in settings.policy.rewards if one.judge)]
    models += [settings.judge_service.model] if settings.judge_service else []
    resources.check_resources(asked, connection.connect(address, offline=_all_here(models)))
    done = policy_pipeline.run(settings, folder)
    for line in policy_summary.summary_lines(done, folder):
        console.print(line, markup=False, soft_wrap=True)
    return done


def draw_curves(target: Path, runs: Sequence[str]) -> None:
    """Draw policies' trainings, each "LABEL=RUN[,RUN...]", into one picture."""
    curves.draw_curves(curves.parse_runs(runs), target)


def co_train(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    run: Path | None = None,
    address: str | None = None,
    dry_run: bool = False,
) -> list[co_training.IterationResult]:
    """Make or continue a co-training run; print and return the result of each iteration."""
    settings = config.load_co_training(path, tuple(overrides))
    folder = run or Path("runs") / path.stem
    console = Console(highlight=False)
    asked = plan.co_training_asks(settings)
    if dry_run:
        console.print(recipe.dump(settings), markup=False)
        console.print(plan.table(asked, connection.connect(address)))
        return []
    trackers.check_installed(settings.policy.policy.trackers)
    _begin(console, folder, path, settings.reward.seed)
    models = [*_models(settings.reward), settings.policy.base]
    resources.check_resources(asked, connection.connect(address, offline=_all_here(models)))
    return co_training.run(settings, folder, on_iteration=lambda result: _print_iteration(console, result))


def _print_iteration(console: Console, result: co_training.IterationResult) -> None:
    first, best = (result[name]["value"] for name in ("first", "best"))
    policy = "" if first is None else f"; policy's held-out value {first:.3f} -> {best:.3f}"
    console.print(
        f"iteration {result['iteration']}: judge's held-out pairwise accuracy {result['accuracy']:.3f}{policy}"
    )
    if result["swap_error"]:
        console.print(
            f"iteration {result['iteration']}: the previous judge stays in service: {result['swap_error']}",
            markup=False,
        )


def _begin(console: Console, folder: Path, path: Path, seed: int) -> None:
    # A job's output is no terminal; line buffering keeps its log in step with the work.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    console.print(f"run {folder}  recipe {path.name}  seed {seed}", markup=False)


def _tell(console: Console, done: RoundResult) -> None:
    name = f"round {done.round}" if done.round else "base"
    console.print(f"{name}: held-out pairwise accuracy {done.accuracy:.3f}")


def _conclude(console: Console, folder: Path, done: Mapping[str, Any]) -> None:
    best = max(done["rounds"], key=lambda r: (r["pairwise_accuracy"], -r["round"]))
    if gain := best.get("gain"):
        console.print(
            f"best round {best['round']}: {gain['value'] * 100:+.1f} points over the base "
            f"(95 %: {gain['ci95'][0] * 100:+.1f} to {gain['ci95'][1] * 100:+.1f}, {gain['num']} pairs)"
        )
    console.print(f"{done['seconds']:.0f} s in all; summary.json, lineage and models are in {folder}", markup=False)


def _models(settings: RunConfig) -> list[str]:
    return [settings.base, *(generator.engine.model for generator in settings.responses.generators)]


def _all_here(models: Sequence[str]) -> bool:
    """Whether every model is a folder here, so that no worker needs to ask the hub."""
    return all(Path(model).is_dir() for model in models)


def evaluate(
    path: Path, *, model: str, overrides: Sequence[str] = (), run: Path, address: str | None = None
) -> Mapping[str, Any]:
    """Judge a recipe's held-out pairs with a model; print and return the figures."""
    from vlgenrm_ray.curation import pool
    from vlgenrm_ray.data.store import StageFolder
    from vlgenrm_ray.evaluation import heldout, pairs

    settings = config.load(path, tuple(overrides))
    folder = model_folder.locate(recipe.resolve(model))
    asked = [replace(ask, stage="evaluation") for ask in plan.asks(settings) if ask.stage == "evaluation"]
    resources.check_resources(asked, connection.connect(address, offline=True))
    labelled, target = StageFolder(run / "heldout-pool"), StageFolder(run / "heldout")
    pool.run(settings.heldout, target=labelled)
    heldout.run(source=labelled, target=target)
    manifest = pairs.run(
        settings.evaluation, judge=settings.judge, model=folder, source=target, target=StageFolder(run / "evaluation")
    )
    Console(highlight=False).print(summary.evaluation_table(manifest.metrics))
    return manifest.metrics


def score(
    image: Path, question: str, response: str, *, model: str, path: Path | None, num_critiques: int | None
) -> None:
    """Print one response's reward and critiques, judged in this process without Ray."""
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
    asked = settings.judge.model_copy(update={"num_critiques": num_critiques} if num_critiques else {})
    folder = str(model_folder.locate(recipe.resolve(model)))
    judge = Judge(asked, VllmGenerator(settings.evaluation.engine.model_copy(update={"model": folder})), limits)
    (judged,) = judge.score([JudgeInput(id="cli", images=(ref,), question=question, response=response)])
    console = Console(highlight=False)
    reward = "none" if judged.reward is None else f"{judged.reward:.4f}"
    console.print(
        f"reward {reward}  status {judged.status}  critiques {len(judged.critiques)}  "
        f"verdict mass {judged.verdict_mass:.3f}"
    )
    for number, critique in enumerate(judged.critiques):
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
    """Serve a judge over HTTP; returns its address at once if not to `wait` until interrupted.

    The tokens are read from the environment: VLGENRM_API_TOKEN and VLGENRM_OPERATOR_TOKEN.
    """
    from vlgenrm_ray.serving import launch

    settings = serving(model, path=path, overrides=overrides, replicas=replicas, image_roots=image_roots)
    connection.connect(address, offline=True)
    url = launch.start(settings, host=host, port=port)
    console = Console(highlight=False)
    console.print(
        f"serving {settings.engine.model} at {url}  docs: {url}/docs  ready: {url}/ready", markup=False, soft_wrap=True
    )
    if wait:
        launch.wait()
    return url


def serving(
    model: str,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    replicas: int | str | None = None,
    image_roots: Sequence[str] = (),
) -> ServingConfig:
    """How `model` is served by a recipe (default: shapes), with the tokens of the environment.

    `replicas`: a number or "auto"; None: the recipe's.
    """
    settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
    folder = str(model_folder.locate(recipe.resolve(model)))
    changes: dict[str, Any] = {"tokens": Tokens.from_environment()}
    if replicas is not None:
        changes["replicas"] = replicas if replicas == "auto" else int(replicas)
    if image_roots:
        changes["image_roots"] = tuple(image_roots)
    found = config.serving(settings, **changes)
    return found.model_copy(update={"engine": found.engine.model_copy(update={"model": folder})})


def examine(path: Path | None, *, overrides: Sequence[str] = (), address: str | None = None) -> int:
    """Print the doctor's findings; 0 if nothing failed."""
    from vlgenrm_ray.cluster import doctor

    asked = plan.asks(config.load(path, tuple(overrides))) if path else []
    return doctor.report(doctor.diagnose(asked, address=address))
