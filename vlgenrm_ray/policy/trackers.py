"""Trackers of experiments: the journal's lines as curves, its samples as tables with their pictures.

    tensorboard    files in the run folder: `tensorboard --logdir RUN/policy/tensorboard`
    wandb          as its own environment variables say (WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE, ...)
    mlflow         likewise (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...)

A training that goes on after a kill goes on in the same tracker's run, and no step is there twice.
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

from vlgenrm_ray.data.store import read_json, write_json
from vlgenrm_ray.errors import ConfigError, StageError

if TYPE_CHECKING:
    import PIL.Image

_log = logging.getLogger(__name__)
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_PROJECT = "vlgenrm"
_FLUSH_S = 1
"""Longest that TensorBoard lags behind, and the most a kill takes from it."""
_NOT_CURVES = ("step", "at")
_ALWAYS = ("train/samples", "evaluation/held_out")
"""Curves that have a point for every step, and for every evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a training tracks itself, and from which step on."""

    folder: Path
    """Of the training; for the trackers' own files."""
    name: str
    config: Mapping[str, Any]
    """The training's settings, as JSON has them."""
    done: int
    """Steps done already: what a tracker has beyond them is about to be done again. 0: it begins anew."""


class Tracker(Protocol):
    """One of them."""

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each curve; its name has the form `group/figure`."""
        ...

    def samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        """A table of answers in Markdown, and the picture they are about."""
        ...

    def close(self) -> None:
        """The training is over."""
        ...


class Trackers:
    """All trackers of a training. One that fails is told of once, and left out from then on."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._all = dict(trackers)

    @classmethod
    def begun(cls, names: Sequence[TrackerName], place: Place) -> Self:
        """Those of these names. Raises StageError where one cannot begin."""
        trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                trackers[name] = _OPEN[name](place)
            except Exception as error:
                raise StageError(f"policy.trackers: {name} cannot begin: {type(error).__name__}: {error}") from error
        return cls(trackers)

    def step(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""
        values = curves("train", line)
        for part in ("seconds", "statuses"):
            values |= curves(part, line.get(part, {}))
        self._each(lambda tracker: tracker.curves(line["step"], values))

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """A line of `evaluations.jsonl`."""
        values = curves("evaluation", line)
        self._each(lambda tracker: tracker.curves(line["step"], values))

    def samples(self, line: Mapping[str, Any], image: "Callable[[], PIL.Image.Image | None]") -> None:
        """A line of `samples.jsonl`; `image` opens its picture, if anybody wants it."""
        if self._all:
            table, picture = markdown(line), image()
            self._each(lambda tracker: tracker.samples(line["step"], table, picture))

    def close(self) -> None:
        """The training is over."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._all.items()):
            try:
                act(tracker)
            # Whatever a tracker's server or disk does, the training does not depend on it.
            except Exception as error:
                _log.warning("policy.trackers: %s fails, and is left out: %s: %s", name, type(error).__name__, error)
                del self._all[name]


def check(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"policy.trackers: {name} needs the package {_PACKAGES[name]}, which is not installed; "
                "install it on all nodes, or leave this tracker out"
            )


def curves(group: str, line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by their curves' names."""
    return {
        re.sub(r"[^\w./-]+", "_", f"{group}/{name}"): float(value)
        for name, value in line.items()
        if isinstance(value, int | float) and name not in _NOT_CURVES
    }


def markdown(line: Mapping[str, Any]) -> str:
    """A line of `samples.jsonl`: its question, and a table of its answers. Nothing in them is taken for markup."""
    rows = ["| reward | answer | critique |", "|---|---|---|"]
    for answer in line["answers"]:
        reward = answer["status"] if answer["reward"] is None else f"{answer['reward']:.4f}"
        rows.append(f"| {' | '.join(_cell(text) for text in (reward, answer['text'], answer['critique']))} |")
    return "\n".join([_cell(line["question"]), "", *rows])


def _cell(text: str) -> str:
    plain = re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text.strip(), quote=False))
    return "<br>".join(plain.splitlines())


class _TensorBoard:
    def __init__(self, place: Place) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard forgets what earlier files have from that step on.
        again = place.done + 1 if place.done else 0
        folder = place.folder / "tensorboard"
        self._writer: Any = SummaryWriter(str(folder), purge_step=again, flush_secs=_FLUSH_S)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        import numpy as np

        self._writer.add_text("samples", table, step)
        if image is not None:
            self._writer.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """It keeps the first of what it is told of a step twice, for its steps only go up."""

    def __init__(self, place: Place) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=place.name,
            id=_kept(place, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(place.folder),
            config=dict(place.config),
        )

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        row = [step, None if image is None else self._wandb.Image(image), table]
        self._run.log({"samples": self._wandb.Table(columns=["step", "image", "answers"], data=[row])}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """It would keep both of what it is told of a step twice, so it is asked what it has."""

    def __init__(self, place: Place) -> None:
        import mlflow

        self._entities: Any = mlflow.entities
        self._client: Any = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)).experiment_id
        self._id = _kept(
            place, "mlflow", lambda: str(self._client.create_run(experiment, run_name=place.name).info.run_id)
        )
        self._client.update_run(self._id, status="RUNNING")
        histories = {name: self._client.get_metric_history(self._id, name) for name in _ALWAYS}
        self._told = {name: max((point.step for point in history), default=-1) for name, history in histories.items()}

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        if any(name in values and step <= last for name, last in self._told.items()):
            return
        at = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, at, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def samples(self, step: int, table: str, image: "PIL.Image.Image | None") -> None:
        self._client.log_text(self._id, table, f"samples/{step:06d}.md")
        if image is not None:
            self._client.log_image(self._id, image, f"samples/{step:06d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _kept(place: Place, name: str, make: Callable[[], str]) -> str:
    """The id of a training's run with a tracker: made for one that begins anew, found for one that goes on."""
    path = place.folder / f"{name}.json"
    if not place.done or not path.exists():
        write_json(path, {"id": make()})
    return str(read_json(path)["id"])


_OPEN: dict[str, Callable[[Place], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}
