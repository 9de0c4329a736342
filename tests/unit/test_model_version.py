"""Model versions: replies name the weights that a folder holds when it is loaded."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from serving_examples import FIRST

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.serving import model_version
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.model_version import ModelVersion, check_reloadable, configured_model, read_version
from vlgenrm_ray.shapes import pack_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack_path("vlm"), tmp_path / "judge"))


def change(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("another")


def verify_loaded(model: ModelVersion) -> ModelVersion:
    return asyncio.run(model_version.verify_loaded(model))


def test_an_unchanged_folder_keeps_its_version(folder: Path) -> None:
    model = read_version(folder, 3)
    assert verify_loaded(model) == model
    check_reloadable(model)


def test_a_changed_folder_is_served_under_its_new_version(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = read_version(folder, 3)
    change(folder)
    verified = verify_loaded(model)
    assert (verified.number, verified.folder) == (model.number, model.folder)
    assert verified.name != model.name
    assert verified.name.startswith("judge-")
    assert verified == read_version(folder, 3)
    assert "holds other weights than it did" in caplog.text


def test_a_changed_or_missing_folder_is_not_reloadable(folder: Path) -> None:
    model = read_version(folder, 0)
    change(folder)
    with pytest.raises(InputError, match="no way back"):
        check_reloadable(model)
    with pytest.raises(InputError, match="no such folder"):
        check_reloadable(replace(FIRST, folder=str(folder / "none")))


def test_a_link_is_resolved_when_the_service_starts(folder: Path, tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.symlink_to(folder)
    config = ServingConfig.model_validate({"engine": {"model": str(best)}})
    model = configured_model(config)
    best.unlink()
    best.symlink_to(pack_path("vlm"))
    assert Path(model.folder) == folder.resolve()
    assert verify_loaded(model) == model
    assert model.name.startswith("best-")
