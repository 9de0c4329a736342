"""Exports of a small run, loaded back as other trainers load them."""

import json
import sys
from pathlib import Path
from typing import Any

import factories
import PIL.Image
import pytest

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Critique, Example, ImageRef, Preference, Side
from vlgenrm_ray.report.exports import export


def stage(path: Path, cls: type, units: list[Unit[Any]]) -> None:
    folder = StageFolder(path)
    folder.begin("settings", {})
    write_units(folder, cls, units)
    folder.finish(seconds=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from vlgenrm_ray import config, recipe

    run = tmp_path / "run"
    path = run / "pool" / "images" / "red.png"
    path.parent.mkdir(parents=True)
    PIL.Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    image: ImageRef = images.probe(str(path), ImageLimits())
    question = factories.question(image=image, text="Is <image> red?")
    pairs = [factories.preference(f"q0/p{i}", question=question) for i in range(3)]
    stage(run / "preferences", Preference, [Unit(id="image", records=tuple(pairs))])
    critiques = [
        factories.critique(f"{pair.id}/{side}/c0", preference_id=pair.id, side=side, verdict=verdict)
        for pair, verdict in zip(pairs, ("yes", "no", None), strict=True)
        for side in Side
    ]
    units = [Unit(id=p.id, records=tuple(c for c in critiques if c.preference_id == p.id)) for p in pairs]
    for round in (1, 2):
        stage(run / f"round-{round}" / "critiques", Critique, units)
        examples = [factories.example(f"q0/p{i}/e{round}", image=image) for i in range(round)]
        stage(run / f"round-{round}" / "selection", Example, [Unit(id="q0/p0", records=tuple(examples))])
    (run / "config.yaml").write_text(recipe.dump(config.load(shipped_recipe("shapes"))))
    return run


def load(path: Path, cache: Path) -> Any:
    from datasets import load_dataset

    kind = "parquet" if path.suffix == ".parquet" else "json"
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache))


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("preferences", {"prompt", "chosen", "rejected"}),
        ("critiques", {"prompt", "completion", "label"}),
        ("examples", {"prompt", "completion"}),
    ],
)
def test_trl_gets_messages_and_decoded_images(run: Path, tmp_path: Path, content: str, columns: set[str]) -> None:
    path, num_rows = export(run, content, "trl", tmp_path / "out")
    rows = load(path, tmp_path / "cache")
    assert set(rows.column_names) == columns | {"id", "images"}
    assert len(rows) == num_rows == {"preferences": 3, "critiques": 4, "examples": 2}[content]
    (image,) = rows[0]["images"]
    assert (image.size, image.getpixel((0, 0))) == ((40, 30), (255, 0, 0))
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"]
    response = rows[0]["chosen" if content == "preferences" else "completion"]
    assert [message["role"] for message in response] == ["assistant"]


def test_the_label_of_a_critique_says_if_its_verdict_is_right(run: Path, tmp_path: Path) -> None:
    path, _ = export(run, "critiques", "trl", tmp_path / "out")
    rows = load(path, tmp_path / "cache")
    assert dict(zip(rows["id"], rows["label"], strict=True)) == {
        "q0/p0/chosen/c0": True,
        "q0/p0/rejected/c0": False,
        "q0/p1/chosen/c0": False,
        "q0/p1/rejected/c0": True,
    }
    assert "No, there is no red circle." in rows[1]["prompt"][0]["content"]


def test_llamafactory_gets_sharegpt_rows_and_their_description(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path, _ = export(run, "preferences", "llamafactory", out, copy_images=True)
    export(run, "critiques", "llamafactory", out, copy_images=True)
    row = load(path, tmp_path / "cache")[0]
    assert row["messages"] == [{"role": "user", "content": "<image>Is  red?"}], "as many tags as images"
    assert (row["chosen"]["role"], row["rejected"]["content"]) == ("assistant", "No, there is no red circle.")
    (image,) = row["images"]
    assert (out / image).exists()
    info = json.loads((out / "dataset_info.json").read_text())
    assert info["vlgenrm_preferences"]["ranking"] is True
    assert info["vlgenrm_preferences"]["columns"]["chosen"] == "chosen"
    assert info["vlgenrm_critiques"]["columns"]["kto_tag"] == "label"


def test_ms_swift_gets_messages_and_rejected_response(run: Path, tmp_path: Path) -> None:
    path, _ = export(run, "preferences", "ms-swift", tmp_path / "out")
    row = load(path, tmp_path / "cache")[0]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert row["rejected_response"] == "No, there is no red circle."
    assert row["images"] == [str(run / "pool" / "images" / "red.png")]
    path, _ = export(run, "critiques", "ms-swift", tmp_path / "out")
    assert load(path, tmp_path / "cache")["label"] == [True, False, False, True]


def test_a_round_can_be_chosen_and_the_default_is_the_latest(run: Path, tmp_path: Path) -> None:
    assert export(run, "examples", "ms-swift", tmp_path / "out")[1] == 2
    assert export(run, "examples", "ms-swift", tmp_path / "out", round=1)[1] == 1


def test_a_format_of_another_package_is_named_by_its_import_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_formats.py").write_text(
        "class Ids:\n"
        "    embeds_images = False\n\n"
        "    def write(self, rows, out, name):\n"
        "        (out / name).write_text(' '.join(row.id for row in rows))\n"
        "        return out / name\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path, num_rows = export(run, "preferences", "my_formats:Ids", tmp_path / "out")
    assert (path.read_text(), num_rows) == ("q0/p0 q0/p1 q0/p2", 3)
    sys.modules.pop("my_formats")


@pytest.mark.parametrize(
    ("content", "format", "message"),
    [
        ("pairs", "trl", "--what 'pairs': unknown; choose from preferences"),
        ("preferences", "trll", "--format 'trll' is unknown; choose from llamafactory, ms-swift, trl"),
    ],
)
def test_unknown_names_are_refused(run: Path, tmp_path: Path, content: str, format: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(run, content, format, tmp_path / "out")


def test_a_run_without_the_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished stage"):
        export(tmp_path / "run", "preferences", "trl", tmp_path / "out")
    with pytest.raises(InputError, match="no round with a finished selection"):
        export(tmp_path / "run", "examples", "trl", tmp_path / "out")
