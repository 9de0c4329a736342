"""Experiment trackers: metrics as curves, and samples as tables with their images.

    tensorboard    files in the run folder: `tensorboard --logdir RUN/policy/tensorboard`
    wandb          configured by its environment variables (WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE, ...)
    mlflow         likewise (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...)

A resumed training continues the same run in each tracker, and no step is recorded twice.
"""

import html
import importlib.util
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.errors import ConfigError, StageError

if TYPE_CHECKING:
    import PIL.Image

_log = logging.getLogger(__name__)
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_PROJECT = "vlgenrm"
_FLUSH_S = 1
"""Seconds between writes of TensorBoard; a killed training loses at most this much."""
_NOT_SCALARS = ("step", "timestamp")
_COMPLETE_METRICS = ("train/samples", "evaluation/held_out")
"""Metrics that every step has, and metrics that every evaluation has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerContext:
    """Run that a tracker records, and the step it continues from."""

    folder: Path
    """Folder of the training, for files of trackers."""
    name: str
    """Name of the run."""
    config: Mapping[str, Any]
    """Settings of the training as JSON values."""
    num_done: int
    """Steps done already; later ones in the tracker are about to be repeated. 0: a new run."""


class Tracker(Protocol):
    """One experiment tracker."""

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics, named `group/name`, of a step."""
        ...

    def log_samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        """Record a Markdown table of answers, and the image they are about."""
        ...

    def close(self) -> None:
        """Finish the run."""
        ...


class TrackerGroup:
    """All trackers of a training. One that fails is reported once and dropped."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    @classmethod
    def start(cls, names: Sequence[TrackerName], context: TrackerContext) -> Self:
        """Start the named trackers.

        Raises:
            StageError: One of them cannot start.
        """
        trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                trackers[name] = _TRACKERS[name](context)
            except Exception as error:
                raise StageError(f"policy.trackers: {name} cannot start: {type(error).__name__}: {error}") from error
        return cls(trackers)

    def log_step(self, line: Mapping[str, Any]) -> None:
        """Record a line of `metrics.jsonl`."""
        values = to_scalars("train", line)
        for section in ("seconds", "statuses"):
            values |= to_scalars(section, line.get(section, {}))
        self._call_each(lambda tracker: tracker.log_metrics(line["step"], values))

    def log_evaluation(self, line: Mapping[str, Any]) -> None:
        """Record a line of `evaluations.jsonl`."""
        values = to_scalars("evaluation", line)
        self._call_each(lambda tracker: tracker.log_metrics(line["step"], values))

    def log_samples(self, line: Mapping[str, Any], image: "Callable[[], PIL.Image.Image | None]") -> None:
        """Record a line of `samples.jsonl`. `image` reads its image, and is called only if there is a tracker."""
        if self._trackers:
            table, sample_image = to_markdown(line), image()
            self._call_each(lambda tracker: tracker.log_samples(line["step"], table, sample_image))

    def close(self) -> None:
        """Finish the run in all trackers."""
        self._call_each(lambda tracker: tracker.close())

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            # A failing server or disk of a tracker must not end the training.
            except Exception as error:
                _log.warning("policy.trackers: %s failed and is dropped: %s: %s", name, type(error).__name__, error)
                del self._trackers[name]


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"policy.trackers: {name} needs the package {_PACKAGES[name]}, which is not installed; "
                "install it on all nodes, or remove this tracker"
            )


def to_scalars(group: str, line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line under the names `group/name`."""
    return {
        re.sub(r"[^\w./-]+", "_", f"{group}/{name}"): float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and name not in _NOT_SCALARS
    }


def to_markdown(line: Mapping[str, Any]) -> str:
    """Format a line of `samples.jsonl` as its question and a table of answers, with all markup escaped."""
    rows = ["| reward | answer | critique |", "|---|---|---|"]
    for answer in line["answers"]:
        reward = answer["status"] if answer["reward"] is None else f"{answer['reward']:.4f}"
        rows.append(f"| {' | '.join(_escape(text) for text in (reward, answer['text'], answer['critique']))} |")
    return "\n".join([_escape(line["question"]), "", *rows])


def _escape(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text.strip(), quote=False))
    return "<br>".join(escaped.splitlines())


class _TensorBoardTracker:
    def __init__(self, context: TrackerContext) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard hides what earlier files hold from that step on.
        purge_step = context.num_done + 1 if context.num_done else 0
        folder = context.folder / "tensorboard"
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=_FLUSH_S)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        import numpy as np

        self._writer.add_text("samples", table, step)
        if image is not None:
            self._writer.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandbTracker:
    """Weights & Biases. Its steps only increase, so of a repeated step it keeps the first record."""

    def __init__(self, context: TrackerContext) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=context.name,
            id=_run_id(context, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(context.folder),
            config=dict(context.config),
        )

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        row = [step, None if image is None else self._wandb.Image(image), table]
        self._run.log({"samples": self._wandb.Table(columns=["step", "image", "answers"], data=[row])}, step=step)

    def close(self) -> None:
        self._run.finish()


class _MlflowTracker:
    """MLflow. It would keep both records of a repeated step, so steps that it already has are skipped."""

    def __init__(self, context: TrackerContext) -> None:
        import mlflow

        self._entities: Any = mlflow.entities
        self._client: Any = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)).experiment_id
        self._id = _run_id(
            context, "mlflow", lambda: str(self._client.create_run(experiment, run_name=context.name).info.run_id)
        )
        self._client.update_run(self._id, status="RUNNING")
        histories = {name: self._client.get_metric_history(self._id, name) for name in _COMPLETE_METRICS}
        self._last_steps = {name: max((p.step for p in history), default=-1) for name, history in histories.items()}

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        if any(name in values and step <= last for name, last in self._last_steps.items()):
            return
        timestamp_ms = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, timestamp_ms, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        self._client.log_text(self._id, table, f"samples/{step:06d}.md")
        if image is not None:
            self._client.log_image(self._id, image, f"samples/{step:06d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _run_id(context: TrackerContext, name: str, create: Callable[[], str]) -> str:
    """Return the id of the training's run in a tracker: a new one for a new training, else the stored one."""
    path = context.folder / f"{name}.json"
    if not context.num_done or not path.exists():
        write_json(path, {"id": create()})
    return str(read_json(path)["id"])


_TRACKERS: dict[str, Callable[[TrackerContext], Tracker]] = {
    "tensorboard": _TensorBoardTracker,
    "wandb": _WandbTracker,
    "mlflow": _MlflowTracker,
}
