"""The training stage under Ray Train: results, and continuation after Ctrl-C; tests/whole interrupts it otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_rewards import rewards_in_transformers
from golden_files import by_metric, compare, cpu_only
from training_runs import CONFIG, NO_IMAGE, TOO_LONG, metrics, train, train_until_ctrl_c, weights, write_selection

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError, ResourceError
from vlgenrm_ray.records import Checkpoint, Example
from vlgenrm_ray.reward.training import run
from vlgenrm_ray.shapes import pack_path


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> StageFolder:
    return write_selection(tmp_path_factory.mktemp("selection"))


@pytest.fixture(scope="module")
def uninterrupted(ray_local: None, selection: StageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("uninterrupted") / "training"
    train(selection, target)
    return target


def test_every_example_is_trained_on_or_dropped_with_its_reason(uninterrupted: Path, selection: StageFolder) -> None:
    manifest = StageFolder(uninterrupted).manifest()
    assert manifest is not None
    assert manifest.metrics["num_examples"] == 30
    assert manifest.metrics["dropped"] == {"example_too_long": 1, "image_missing": 1}
    assert {d.id for d in StageFolder(uninterrupted).dropped()} == {TOO_LONG, NO_IMAGE}
    steps = metrics(uninterrupted)
    assert [s["step"] for s in steps] == list(range(1, 17))
    assert sum(s["examples"] for s in steps) == 60
    halves = [sum(s["loss"] for s in part) for part in (steps[:8], steps[8:])]
    assert halves[1] < halves[0]
    assert max(s["lr"] for s in steps) == pytest.approx(3e-4)


@cpu_only
def test_golden_losses_of_a_training(uninterrupted: Path) -> None:
    # Rounding differs between processors, and adds up over the steps.
    compare("training", by_metric(metrics(uninterrupted)[:6], "loss"), 1e-5)


def test_a_finished_training_is_returned_unchanged(uninterrupted: Path, selection: StageFolder) -> None:
    before = (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns
    again = train(selection, uninterrupted)
    assert again.model == uninterrupted / "model"
    assert (again.model / "model.safetensors").stat().st_mtime_ns == before
    (checkpoint,) = StageFolder(uninterrupted).records(Checkpoint)
    assert (checkpoint.uri, checkpoint.round) == (str(again.model), 1)
    assert checkpoint.parent.startswith("vlm@")
    assert not (uninterrupted / "ray").exists()


def test_the_export_gives_the_probes_rewards(uninterrupted: Path) -> None:
    probes = json.loads((uninterrupted / "probes.json").read_text())["probes"]
    assert len(probes) == 4
    examples = [_as_example(p) for p in probes]
    # The pack's weights are bf16, and so are its exports: an fp32 training is rounded to 8 bits once.
    assert rewards_in_transformers(uninterrupted / "model", examples) == pytest.approx(
        [p["p_yes"] for p in probes], abs=0.03
    )


def test_results_are_the_same_after_ctrl_c(uninterrupted: Path, selection: StageFolder, tmp_path: Path) -> None:
    target = tmp_path / "training"
    train_until_ctrl_c(selection, target)
    train(selection, target)
    whole, pieces = metrics(uninterrupted), metrics(target)
    assert [s["step"] for s in pieces] == [s["step"] for s in whole]
    assert [s["loss"] for s in pieces] == pytest.approx([s["loss"] for s in whole], rel=1e-4)
    assert weights(target) == pytest.approx(weights(uninterrupted), abs=2e-3)


def test_missing_resources_are_named(ray_local: None, selection: StageFolder, tmp_path: Path) -> None:
    for wrong, word in (({"workers": 999}, "999"), ({"num_gpus": 1, "workers": 9}, "GPU")):
        config = CONFIG.model_copy(update=wrong)
        with pytest.raises(ResourceError, match=word):
            run(config, base=pack_path("vlm"), examples=selection, target=tmp_path / word, round=1)


def test_a_base_that_does_not_load_is_an_input_error(ray_local: None, selection: StageFolder, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in pack_path("vlm").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "model.safetensors").write_bytes(b"not weights")
    config = CONFIG.model_copy(update={"workers": 1, "retries": 0})
    with pytest.raises(InputError, match=r"model\.safetensors is cut short"):
        run(config, base=base, examples=selection, target=tmp_path / "training", round=1)


def _as_example(probe: dict[str, Any]) -> Example:
    from vlgenrm_ray.records import ExampleKind, ImageRef

    (image,) = (ImageRef(**fields) for fields in probe["images"])
    assert images.verify(image, ImageLimits())
    return Example(
        id=probe["id"],
        image=image,
        prompt=probe["prompt"],
        completion=probe["prefix"],
        kind=ExampleKind.CRITIQUE,
        label="",
        weight=1.0,
        round=1,
    )
