"""An engine serves under the version that its folder holds, not under the one that it held."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from serving_examples import FIRST

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.serving import engine
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine_worker import first_model, model_in
from vlgenrm_ray.serving.tasks import Model
from vlgenrm_ray.shapes import pack_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack_path("vlm"), tmp_path / "judge"))


def changed(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("another")


def loaded(model: Model) -> Model:
    return asyncio.run(engine.loaded(model))


def test_a_folder_that_is_as_it_was_keeps_its_version(folder: Path) -> None:
    model = model_in(folder, 3)
    assert loaded(model) == model
    engine.check_way_back(model)


def test_a_folder_that_has_changed_is_served_under_its_true_version(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_in(folder, 3)
    changed(folder)
    found = loaded(model)
    assert (found.number, found.folder) == (model.number, model.folder)
    assert found.version != model.version
    assert found.version.startswith("judge-")
    assert found == model_in(folder, 3)
    assert "holds other weights than it did" in caplog.text


def test_there_is_no_way_back_to_a_folder_that_has_changed_or_gone(folder: Path) -> None:
    model = model_in(folder, 0)
    changed(folder)
    with pytest.raises(InputError, match="no way back"):
        engine.check_way_back(model)
    with pytest.raises(InputError, match="no such folder"):
        engine.check_way_back(replace(FIRST, folder=str(folder / "none")))


def test_the_first_model_is_what_a_link_leads_to_at_the_start(folder: Path, tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.symlink_to(folder)
    config = ServingConfig.model_validate({"engine": {"model": str(best)}})
    model = first_model(config)
    best.unlink()
    best.symlink_to(pack_path("vlm"))
    assert Path(model.folder) == folder.resolve()
    assert loaded(model) == model
    assert model.version.startswith("best-")
