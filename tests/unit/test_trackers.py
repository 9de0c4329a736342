"""Experiment trackers: every step is recorded once, even if the training is killed. Only TensorBoard is real."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from event_files import read_events, visible_steps
from PIL import Image

from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.policy.trackers import (
    TrackerContext,
    TrackerGroup,
    TrackerName,
    check_installed,
    to_markdown,
    to_scalars,
)

IMAGE = Image.new("RGB", (30, 20), "red")
SAMPLES = {
    "step": 1,
    "question": "What is *left*?",
    "answers": [
        {"reward": 0.5, "status": "ok", "text": "A <b>star</b>\nand a | sign", "critique": "Right."},
        {"reward": None, "status": "timeout", "text": "", "critique": ""},
    ],
}


def context(folder: Path, num_done: int = 0) -> TrackerContext:
    return TrackerContext(folder=folder, name="run", config={"seed": 0}, num_done=num_done)


def step(number: int, reward: float | None = 0.5) -> dict[str, Any]:
    seconds = {"learn": 0.25}
    return {
        "step": number,
        "timestamp": 1.7e9,
        "samples": 8.0,
        "reward": reward,
        "seconds": seconds,
        "statuses": {"ok": 8},
    }


def evaluation(number: int) -> dict[str, Any]:
    return {"step": number, "held_out": 0.25, "image_reward_gain": None, "outcomes": {"q0": 1.0}, "warning": ""}


def log_training(names: tuple[TrackerName, ...], folder: Path, num_done: int, until: int) -> None:
    """Log the steps of one process, from a checkpoint until it ends."""
    group = TrackerGroup.start(names, context(folder, num_done))
    for number in range(num_done + 1, until + 1):
        group.log_step(step(number))
        group.log_evaluation(evaluation(number))
        group.log_samples(SAMPLES | {"step": number}, lambda: IMAGE)
    group.close()


def test_only_numbers_are_scalars() -> None:
    assert to_scalars("train", step(3, None)) == {"train/samples": 8.0}
    assert to_scalars("statuses", {"half: no_reward": 2}) == {"statuses/half_no_reward": 2.0}


def test_markup_in_answers_is_escaped() -> None:
    question, _, head, _, first, second = to_markdown(SAMPLES).splitlines()
    assert (question, head) == (r"What is \*left\*?", "| reward | answer | critique |")
    assert first == r"| 0.5000 | A &lt;b&gt;star&lt;/b&gt;<br>and a \| sign | Right. |"
    assert second == "| timeout |  |  |"


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    check_installed(("tensorboard",))
    with pytest.raises(ConfigError, match=r"policy.trackers: wandb needs the package wandb, which is not installed"):
        check_installed(("tensorboard", "wandb"))
    with pytest.raises(StageError, match="mlflow cannot start: ModuleNotFoundError"):
        TrackerGroup.start(("mlflow",), context(tmp_path))


class FailingTracker:
    """Fails from the second call on."""

    def __init__(self) -> None:
        self.num_calls = 0

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        self.num_calls += 1
        if self.num_calls > 1:
            raise OSError("disk full")


def test_a_failing_tracker_is_dropped_and_the_others_continue(caplog: pytest.LogCaptureFixture) -> None:
    failing, other = FailingTracker(), RecordingTracker()
    group = TrackerGroup({"tensorboard": failing, "mlflow": other})  # type: ignore[dict-item]
    for number in range(4):
        group.log_step(step(number))
    assert (failing.num_calls, len(other.steps)) == (2, 4)
    assert caplog.text.count("tensorboard failed and is dropped: OSError: disk full") == 1


class RecordingTracker:
    """Records steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_tensorboard_has_every_step_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorboardX.event_file_writer

    seconds = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr(tensorboardX.event_file_writer.time, "time", lambda: float(next(seconds)))
    folder = tmp_path / "tensorboard"
    log_training(("tensorboard",), tmp_path, 0, 5)
    log_training(("tensorboard",), tmp_path, 3, 6)
    assert visible_steps(folder, "train/reward") == visible_steps(folder, "evaluation/held_out") == [1, 2, 3, 4, 5, 6]
    assert visible_steps(folder, "seconds/learn") == [1, 2, 3, 4, 5, 6]
    assert not visible_steps(folder, "train/timestamp")


def test_tensorboard_has_samples_with_their_image(tmp_path: Path) -> None:
    group = TrackerGroup.start(("tensorboard",), context(tmp_path))
    group.log_samples(SAMPLES, lambda: IMAGE)
    group.close()
    values = {value.tag: value for event in read_events(tmp_path / "tensorboard") for value in event.summary.value}
    assert (values["samples"].image.width, values["samples"].image.height) == (30, 20)
    assert b"| 0.5000 |" in values["samples/text_summary"].tensor.string_val[0]


# -- fakes ------------------------------------------------------------------------------------------------------------


class FakeWandb(ModuleType):
    """Like wandb: merges metrics of one step, drops earlier steps, and resumes a run after its last step."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, FakeWandbRun] = {}

    def init(
        self, *, id: str, resume: str, project: str, name: str, dir: str, config: dict[str, Any]
    ) -> "FakeWandbRun":
        assert (resume, name, config) == ("allow", "run", {"seed": 0})
        run = self.runs.setdefault(id, FakeWandbRun())
        run.first = max(run.rows, default=-1) + 1
        return run

    def Image(self, image: Any) -> tuple[int, int]:
        size: tuple[int, int] = image.size
        return size

    def Table(self, columns: list[str], data: list[list[Any]]) -> dict[str, Any]:
        return dict(zip(columns, data[0], strict=True))


class FakeWandbRun:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.first = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        if step >= max(self.rows, default=0) and step >= self.first:
            row = self.rows.setdefault(step, {})
            assert not set(row) & set(values)
            row |= values

    def finish(self) -> None: ...


def test_wandb_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_training(("wandb",), tmp_path, 0, 5)
    (run,) = wandb.runs.values()
    assert run.rows[2]["samples"]["image"] == (30, 20)
    log_training(("wandb",), tmp_path, 3, 6)
    assert list(run.rows) == [1, 2, 3, 4, 5, 6]
    assert {row["evaluation/held_out"] for row in run.rows.values()} == {0.25}
    log_training(("wandb",), tmp_path, 0, 1)
    assert len(wandb.runs) == 2, "a new training has a new run"


class FakeMlflow(ModuleType):
    """Like mlflow: a run keeps every record, repeated ones too."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.points: list[tuple[str, int]] = []
        self.files: list[str] = []
        self.runs = 0

    @property
    def entities(self) -> Any:
        return SimpleNamespace(Metric=lambda name, value, at, step: SimpleNamespace(key=name, value=value, step=step))

    def MlflowClient(self) -> "FakeMlflow":
        return self

    def set_experiment(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7")

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment}/{self.runs}"))

    def update_run(self, run: str, status: str) -> None: ...

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step) for key, step in self.points if key == name]

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.points += [(metric.key, metric.step) for metric in metrics]

    def log_text(self, run: str, text: str, file: str) -> None:
        self.files.append(file)

    def log_image(self, run: str, image: Any, file: str) -> None:
        self.files.append(file)

    def set_terminated(self, run: str) -> None: ...


def test_mlflow_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log_training(("mlflow",), tmp_path, 0, 5)
    log_training(("mlflow",), tmp_path, 3, 6)
    assert mlflow.runs == 1
    for name in ("train/reward", "evaluation/held_out", "seconds/learn"):
        assert [step for key, step in mlflow.points if key == name] == [1, 2, 3, 4, 5, 6]
    assert {"samples/000001.md", "samples/000006.png"} <= set(mlflow.files)
