"""The training stage without workers: invalid inputs, and a training whose workers have finished."""

from pathlib import Path

import pytest
from factories import example
from pydantic import ValidationError

from vlgenrm_ray.data.files import write_json
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, InputError, StageError
from vlgenrm_ray.records import Example
from vlgenrm_ray.reward.training import TrainingConfig, parent_name, run


@pytest.fixture
def selection(tmp_path: Path) -> StageFolder:
    folder = StageFolder(tmp_path / "selection")
    folder.begin("x", {})
    write_units(folder, Example, [Unit(id="p0", records=(example("p0/e"),))])
    folder.finish(seconds=0.0)
    return folder


def weights(data: bytes) -> bytes:
    """A safetensors file that names no tensor."""
    return (2).to_bytes(8, "little") + b"{}" + data


def model(folder: Path) -> Path:
    """A folder that looks like a model until it is loaded."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    (folder / "model.safetensors").write_bytes(weights(b"some"))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "processor_config.json").write_text("{}")
    return folder


def finished_by_workers(tmp_path: Path, base: Path, examples: StageFolder) -> Path:
    """A training whose workers have finished and whose driver was killed before it wrote the manifest."""
    target = tmp_path / "round-1" / "training"
    config = TrainingConfig()
    with pytest.raises(KeyError):
        # Begins the folder, then finds a result without what it needs.
        _ = write_json(target / "result.json", {}), run(config, base=base, examples=examples, target=target, round=1)
    result = {"steps": 2, "num_examples": 1, "phases": {}}
    dropped = {"stage": "training", "id": "p1/e", "reason": "example_too_long", "detail": "9000 tokens"}
    write_json(target / "result.json", result | {"dropped": [dropped]})
    (target / "metrics.jsonl").write_text('{"loss": 2.0, "tokens": 10}\n{"loss": 1.0, "tokens": 12}\n')
    (target / "model").mkdir()
    return target


def test_a_base_that_is_no_model_is_refused(tmp_path: Path, selection: StageFolder) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run(TrainingConfig(), base=tmp_path / "gone", examples=selection, target=tmp_path / "t", round=1)
    assert not (tmp_path / "t").exists()


def test_an_unfinished_selection_is_refused(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "selection")
    folder.begin("x", {})
    with pytest.raises(StageError, match=r"no manifest\.json"):
        run(TrainingConfig(), base=model(tmp_path / "m"), examples=folder, target=tmp_path / "t", round=1)


def test_the_manifest_of_finished_workers_needs_no_cluster(tmp_path: Path, selection: StageFolder) -> None:
    base = model(tmp_path / "m")
    target = finished_by_workers(tmp_path, base, selection)
    finished = run(TrainingConfig(), base=base, examples=selection, target=target, round=1)
    assert finished.model == target / "model"
    assert finished.metrics["first_loss"] == 2.0
    assert finished.metrics["num_tokens"] == 22
    assert finished.metrics["dropped"] == {"example_too_long": 1}
    assert [d.id for d in StageFolder(target).dropped()] == ["p1/e"]
    again = run(TrainingConfig(), base=base, examples=selection, target=target, round=1)
    assert again == finished


def test_a_folder_with_other_settings_is_refused(tmp_path: Path, selection: StageFolder) -> None:
    base = model(tmp_path / "m")
    target = finished_by_workers(tmp_path, base, selection)
    with pytest.raises(ConfigError, match="other settings or inputs"):
        run(TrainingConfig(epochs=2), base=base, examples=selection, target=target, round=1)
    (base / "model.safetensors").write_bytes(weights(b"other"))
    with pytest.raises(ConfigError, match="other settings or inputs"):
        run(TrainingConfig(), base=base, examples=selection, target=target, round=1)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"examples_per_step": 0}, {"balance": "even"}, {"num_gpus": 2}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainingConfig.model_validate(wrong)


def test_the_parent_of_a_checkpoint_does_not_depend_on_where_the_run_or_the_package_lies(tmp_path: Path) -> None:
    for place in ("checkout", "session"):
        (tmp_path / place).mkdir()
    first, second = (model(tmp_path / place / "vlm") for place in ("checkout", "session"))
    assert parent_name(first, tmp_path / "run") == parent_name(second, tmp_path / "other-run")
    assert parent_name(first, tmp_path / "run").startswith("vlm@")
    inside = tmp_path / "run" / "round-1" / "training" / "model"
    assert parent_name(inside, tmp_path / "run") == "round-1/training/model"
