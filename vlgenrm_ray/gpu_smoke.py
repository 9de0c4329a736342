"""First run on a machine with GPUs: every part of the package on the embedded models, each by itself.

A part that fails does not stop the others. On a machine without GPUs the same parts run on the CPU, except those that
need a GPU. Nothing of the result says how good a model is; the tiny ones only exercise the code.
"""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from vlgenrm_ray import config, pipeline, policy_pipeline
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.pipeline import PreparationStage

_ROUND_STAGES = {
    "round-0/evaluation": "evaluation of the base",
    "round-1/critiques": "critiques",
    "round-1/selection": "selection",
    "round-1/training": "training, ZeRO 3",
    "round-1/evaluation": "evaluation of the export",
}
_TRUTH = "vlgenrm_ray.shapes.world:response_is_true"
_GRPO_STEPS = 2
_SERVICE = "vlgenrm-smoke"
_PATIENCE_S = 300.0


class SmokeStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    """The machine lacks what the part needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeResult:
    """Outcome of one part."""

    part: str
    status: SmokeStatus
    seconds: float
    detail: str
    """Figures of a part that works, the error of one that does not, or what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeRun:
    """Folder, recipes, GPUs and port with which the parts run."""

    folder: Path
    """Folder for runs; it must be new, or finished parts would not be run again."""
    recipes: Path
    """Folder of the shipped recipes."""
    num_gpus: int
    """GPUs of the cluster; 0: everything runs on the CPU."""
    port: int
    """Free TCP port for the served judge."""


def run(smoke: SmokeRun, on_result: Callable[[SmokeResult], None] = lambda result: None) -> list[SmokeResult]:
    """Run all parts on the connected Ray.

    Args:
        smoke: Folder, recipes and GPUs.
        on_result: Called with each result as soon as it is known.

    Returns:
        The results, in order. Errors are results, never raised; only Ctrl-C ends the run.
    """
    results: list[SmokeResult] = []
    for result in _parts(smoke):
        results.append(result)
        on_result(result)
    return results


def exit_code(results: Sequence[SmokeResult]) -> int:
    """Return 1 if a part failed, else 0."""
    return int(any(result.status is SmokeStatus.FAILED for result in results))


def _parts(smoke: SmokeRun) -> Iterator[SmokeResult]:
    stages: tuple[PreparationStage, ...] = ("responses", "experts", "preferences")
    for stage in stages:
        yield _attempt(stage, partial(_prepare, smoke, stage))
    yield from _reward_round(smoke)
    for transfer, gpus in (("object_store", 0), ("ipc", 1), ("nccl", 2)):
        part = f"{_GRPO_STEPS} GRPO steps, weights by {transfer}"
        if smoke.num_gpus < gpus:
            needed = "needs a GPU" if gpus == 1 else f"needs {gpus} GPUs"
            yield SmokeResult(part=part, status=SmokeStatus.SKIPPED, seconds=0.0, detail=needed)
        else:
            yield _attempt(part, partial(_train_policy, smoke, transfer))
    yield _attempt("served judge", partial(_serve, smoke))


def _attempt(part: str, work: Callable[[], str]) -> SmokeResult:
    begin = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            status, detail = SmokeStatus.OK, work()
    # Whatever a driver, a library or an engine raises is what this command is there to show.
    except Exception as error:
        status, detail = SmokeStatus.FAILED, _first_lines(error)
    return SmokeResult(part=part, status=status, seconds=time.monotonic() - begin, detail=detail)


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split()) or repr(error)
    return f"{type(error).__name__}: {text[:600]}"


# -- reward model ------------------------------------------------------------------------------------------------------


def _prepare(smoke: SmokeRun, stage: PreparationStage) -> str:
    pipeline.run(reward_config(smoke), smoke.folder / "reward", until=stage)
    return _rows(smoke, stage)


def _reward_round(smoke: SmokeRun) -> Iterator[SmokeResult]:
    """Run one round; yield a result for each of its stages, with the error at the first that did not finish."""
    whole = _attempt("round", lambda: str(len(pipeline.run(reward_config(smoke), smoke.folder / "reward")["rounds"])))
    detail = whole.detail
    for stage, part in _ROUND_STAGES.items():
        manifest = StageFolder(smoke.folder / "reward" / stage).manifest()
        if manifest is not None:
            yield SmokeResult(part=part, status=SmokeStatus.OK, seconds=manifest.seconds, detail=_rows(smoke, stage))
        elif detail:
            yield SmokeResult(part=part, status=SmokeStatus.FAILED, seconds=whole.seconds, detail=detail)
            detail = ""
        else:
            yield SmokeResult(part=part, status=SmokeStatus.SKIPPED, seconds=0.0, detail="not reached")


def _rows(smoke: SmokeRun, stage: str) -> str:
    manifest = StageFolder(smoke.folder / "reward" / stage).complete()
    if stage.endswith("training"):
        return f"{manifest.metrics['steps']} steps, loss {manifest.metrics['last_loss']:.3f}, exported"
    return f"{manifest.rows_in} rows in, {manifest.rows_out} out"


def reward_config(smoke: SmokeRun) -> config.RunConfig:
    """Return the settings of the reward-model run: the recipe `shapes`, small, and with ZeRO 3."""
    overrides = [
        "pool.count=24",
        "heldout.count=8",
        "responses.generators.0.n=2",
        "judge.num_critiques=2",
        "critiques.num_critiques=2",
        # Examples of verdicts and answers, in case that no critique of so few is right.
        "selection.w_direct=1",
        "selection.lambda_answer=1",
        "training.epochs=1",
        "training.engine.zero_stage=3",
        "rounds.num_rounds=1",
        "actors.num_actors=1",
        *_engine_overrides("engine"),
    ]
    if smoke.num_gpus:
        overrides += [
            "actors.num_gpus=1",
            # A quarter each for detector and matcher, as several of them share a GPU.
            "experts.actors.num_gpus=0.25",
            "experts.matcher_actors.num_gpus=0.25",
            f"training.workers={min(2, smoke.num_gpus)}",
            "training.num_gpus=1",
        ]
    return config.load(smoke.recipes / "shapes.yaml", tuple(overrides))


def _engine_overrides(section: str) -> list[str]:
    """Return settings with which an engine leaves room for a learner on the same GPU."""
    return [f"{section}.kv_cache_gib=0.25", f"{section}.gpu_memory_utilization=0.4"]


# -- policy and service ------------------------------------------------------------------------------------------------


def _train_policy(smoke: SmokeRun, transfer: str) -> str:
    summary = policy_pipeline.run(policy_config(smoke, transfer), smoke.folder / f"policy-{transfer}")
    return f"{summary['steps']} steps, {summary['samples']} samples, {summary['failed']} failed"


def policy_config(smoke: SmokeRun, transfer: str) -> config.PolicyRunConfig:
    """Return the settings of a policy's training whose weights go by a transport: the recipe `shapes_grpo`, small."""
    overrides = [
        "judge_service=null",
        f"policy.rewards=[{{name: truth, function: '{_TRUTH}'}}]",
        "pool.count=16",
        "heldout.count=8",
        f"policy.steps={_GRPO_STEPS}",
        "policy.questions_per_step=4",
        "policy.rollouts.group_size=4",
        "policy.rollouts.max_tokens=32",
        "policy.evaluation.every=2",
        f"policy.sync.transfer={transfer}",
        *_engine_overrides("engine"),
    ]
    if smoke.num_gpus:
        # NCCL connects GPUs of their own; otherwise learner and engine share one.
        share = 1 if transfer == "nccl" else 0.5
        overrides += [f"policy.num_gpus={share}", f"policy.rollouts.num_gpus={share}"]
    return config.load_policy(smoke.recipes / "shapes_grpo.yaml", tuple(overrides))


def _serve(smoke: SmokeRun) -> str:
    from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
    from vlgenrm_ray.serving import launch

    settings = reward_config(smoke)
    serving = config.serving(settings, **({"num_gpus": 1} if smoke.num_gpus else {}))
    engine = serving.engine.model_copy(update={"model": settings.base})
    try:
        url = launch.start(
            serving.model_copy(update={"engine": engine}),
            host="127.0.0.1",
            port=smoke.port,
            name=_SERVICE,
            replace=True,
        )
        with RemoteJudge(url) as judge:
            judge.check(patience_s=_PATIENCE_S)
            item = ScoreInput(image=_image(), question="Describe the image.", response="There is a red circle.")
            (reply,) = judge.score([item])
    finally:
        launch.stop(_SERVICE)
    if reply.reward is None:
        raise RuntimeError(f"the judge has no reward: {reply.status} {reply.detail}")
    return f"reward {reply.reward:.3f} of {len(reply.critiques)} critiques"


def _image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (72, 72), (200, 40, 40)).save(file, "PNG")
    return file.getvalue()
