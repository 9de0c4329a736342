"""Trackers: what they are told, and that once, whatever kills the training. TensorBoard is real, the rest straw."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from event_files import events, shown
from PIL import Image

from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.policy.trackers import Place, TrackerName, Trackers, check, curves, markdown

PICTURE = Image.new("RGB", (30, 20), "red")
SAMPLES = {
    "step": 1,
    "question": "What is *left*?",
    "answers": [
        {"reward": 0.5, "status": "ok", "text": "A <b>star</b>\nand a | sign", "critique": "Right."},
        {"reward": None, "status": "timeout", "text": "", "critique": ""},
    ],
}


def place(folder: Path, done: int = 0) -> Place:
    return Place(folder=folder, name="run", config={"seed": 0}, done=done)


def step(number: int, reward: float | None = 0.5) -> dict[str, Any]:
    seconds = {"learn": 0.25}
    return {"step": number, "at": 1.7e9, "samples": 8.0, "reward": reward, "seconds": seconds, "statuses": {"ok": 8}}


def evaluation(number: int) -> dict[str, Any]:
    return {"step": number, "held_out": 0.25, "sight": None, "outcomes": {"q0": 1.0}, "doubt": ""}


def trained(names: tuple[TrackerName, ...], folder: Path, done: int, until: int) -> None:
    """One process' share, from a checkpoint until it is killed, or ends."""
    tracked = Trackers.begun(names, place(folder, done))
    for number in range(done + 1, until + 1):
        tracked.step(step(number))
        tracked.evaluation(evaluation(number))
        tracked.samples(SAMPLES | {"step": number}, lambda: PICTURE)
    tracked.close()


def test_numbers_are_curves_and_nothing_else_is() -> None:
    assert curves("train", step(3, None)) == {"train/samples": 8.0}
    assert curves("statuses", {"half: no_reward": 2}) == {"statuses/half_no_reward": 2.0}


def test_a_table_of_answers_is_taken_as_it_is_written() -> None:
    question, _, head, _, first, second = markdown(SAMPLES).splitlines()
    assert (question, head) == (r"What is \*left\*?", "| reward | answer | critique |")
    assert first == r"| 0.5000 | A &lt;b&gt;star&lt;/b&gt;<br>and a \| sign | Right. |"
    assert second == "| timeout |  |  |"


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    check(("tensorboard",))
    with pytest.raises(ConfigError, match=r"policy.trackers: wandb needs the package wandb, which is not installed"):
        check(("tensorboard", "wandb"))
    with pytest.raises(StageError, match="mlflow cannot begin: ModuleNotFoundError"):
        Trackers.begun(("mlflow",), place(tmp_path))


class Failing:
    """Fails at whatever it is told, from the second time on."""

    def __init__(self) -> None:
        self.told = 0

    def curves(self, step: int, values: dict[str, float]) -> None:
        self.told += 1
        if self.told > 1:
            raise OSError("disk full")


def test_one_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    failing, other = Failing(), Other()
    tracked = Trackers({"tensorboard": failing, "mlflow": other})  # type: ignore[dict-item]
    for number in range(4):
        tracked.step(step(number))
    assert (failing.told, len(other.steps)) == (2, 4)
    assert caplog.text.count("tensorboard fails, and is left out: OSError: disk full") == 1


class Other:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def curves(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_tensorboard_has_every_step_once_although_the_training_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorboardX.event_file_writer

    seconds = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr(tensorboardX.event_file_writer.time, "time", lambda: float(next(seconds)))
    folder = tmp_path / "tensorboard"
    trained(("tensorboard",), tmp_path, 0, 5)
    trained(("tensorboard",), tmp_path, 3, 6)
    assert shown(folder, "train/reward") == shown(folder, "evaluation/held_out") == [1, 2, 3, 4, 5, 6]
    assert shown(folder, "seconds/learn") == [1, 2, 3, 4, 5, 6]
    assert not shown(folder, "train/at")


def test_tensorboard_shows_samples_with_their_picture(tmp_path: Path) -> None:
    tracked = Trackers.begun(("tensorboard",), place(tmp_path))
    tracked.samples(SAMPLES, lambda: PICTURE)
    tracked.close()
    values = {value.tag: value for event in events(tmp_path / "tensorboard") for value in event.summary.value}
    assert (values["samples"].image.width, values["samples"].image.height) == (30, 20)
    assert b"| 0.5000 |" in values["samples/text_summary"].tensor.string_val[0]


# -- straw -------------------------------------------------------------------------------------------------------------


class StrawWandb(ModuleType):
    """As wandb: figures of one step are merged, steps below the last are dropped, and a resumed run begins after it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, StrawRun] = {}

    def init(self, *, id: str, resume: str, project: str, name: str, dir: str, config: dict[str, Any]) -> "StrawRun":
        assert (resume, name, config) == ("allow", "run", {"seed": 0})
        run = self.runs.setdefault(id, StrawRun())
        run.first = max(run.rows, default=-1) + 1
        return run

    def Image(self, image: Any) -> tuple[int, int]:
        size: tuple[int, int] = image.size
        return size

    def Table(self, columns: list[str], data: list[list[Any]]) -> dict[str, Any]:
        return dict(zip(columns, data[0], strict=True))


class StrawRun:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.first = 0

    def log(self, values: dict[str, Any], step: int) -> None:
        if step >= max(self.rows, default=0) and step >= self.first:
            row = self.rows.setdefault(step, {})
            assert not set(row) & set(values)
            row |= values

    def finish(self) -> None: ...


def test_wandb_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StrawWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trained(("wandb",), tmp_path, 0, 5)
    (run,) = wandb.runs.values()
    assert run.rows[2]["samples"]["image"] == (30, 20)
    trained(("wandb",), tmp_path, 3, 6)
    assert list(run.rows) == [1, 2, 3, 4, 5, 6]
    assert {row["evaluation/held_out"] for row in run.rows.values()} == {0.25}
    trained(("wandb",), tmp_path, 0, 1)
    assert len(wandb.runs) == 2, "begun anew"


class StrawMlflow(ModuleType):
    """As mlflow: a run keeps whatever it is told, as often as that is."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.points: list[tuple[str, int]] = []
        self.files: list[str] = []
        self.runs = 0

    @property
    def entities(self) -> Any:
        return SimpleNamespace(Metric=lambda name, value, at, step: SimpleNamespace(key=name, value=value, step=step))

    def MlflowClient(self) -> "StrawMlflow":
        return self

    def set_experiment(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7")

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment}/{self.runs}"))

    def update_run(self, run: str, status: str) -> None: ...

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step) for told, step in self.points if told == name]

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self.points += [(metric.key, metric.step) for metric in metrics]

    def log_text(self, run: str, text: str, file: str) -> None:
        self.files.append(file)

    def log_image(self, run: str, image: Any, file: str) -> None:
        self.files.append(file)

    def set_terminated(self, run: str) -> None: ...


def test_mlflow_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = StrawMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    trained(("mlflow",), tmp_path, 0, 5)
    trained(("mlflow",), tmp_path, 3, 6)
    assert mlflow.runs == 1
    for name in ("train/reward", "evaluation/held_out", "seconds/learn"):
        assert [step for told, step in mlflow.points if told == name] == [1, 2, 3, 4, 5, 6]
    assert {"samples/000001.md", "samples/000006.png"} <= set(mlflow.files)
