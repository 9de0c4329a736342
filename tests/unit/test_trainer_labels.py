"""Labels for trainers: every format is read by the reward function of its own trainer."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from vlgenrm_ray.cli import app
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.label import read_label
from vlgenrm_ray.report.trainer_labels import FORMATS, write_labels

QUESTIONS = ("What is there?", "Is it red?")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two good rows, and one whose image is missing."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    rows = [
        {"image": "a.png", "question": QUESTIONS[0], "answer": "A circle."},
        {"image": "b.png", "question": QUESTIONS[1], "answer": None},
        {"image": "missing.png", "question": "What is lost?", "answer": ""},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    return [json.loads(line) for line in path.read_text().splitlines()]


def label_of(trainer: str, row: dict[str, Any]) -> Any:
    return {
        "openrlhf": lambda: row["label"],
        "slime": lambda: row["label"],
        "verl": lambda: row["reward_model"]["ground_truth"],
        "easyr1": lambda: row["answer"],
        "roll": lambda: row["ground_truth"],
    }[trainer]()


@pytest.mark.parametrize("trainer", ["openrlhf", "slime", "verl", "easyr1", "roll"])
def test_the_label_holds_question_image_and_reference(trainer: str, data: Path, tmp_path: Path) -> None:
    result = write_labels(str(data), trainer, tmp_path / "out" / "train")
    rows = read(result.path)
    assert result.num_rows == len(rows) == 2
    assert result.dropped == {"image_missing": 1}
    assert "missing.png" in result.first_problem
    first, second = (read_label(label_of(trainer, row)) for row in rows)
    assert (first.question, first.images, first.reference) == (QUESTIONS[0], (str(tmp_path / "a.png"),), "A circle.")
    assert second.reference is None


@pytest.mark.parametrize("trainer", ["verl", "easyr1", "ms-swift", "trl", "roll", "slime"])
def test_trainers_that_show_the_image_to_the_policy_get_it_in_their_own_columns(
    trainer: str, data: Path, tmp_path: Path
) -> None:
    row = read(write_labels(str(data), trainer, tmp_path / "train").path)[0]
    images = row.get("images") or row["image"]
    assert images in ([str(tmp_path / "a.png")], [{"image": str(tmp_path / "a.png")}])
    prompt = row.get("prompt") or row.get("messages") or row["problem"]
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    assert text == (QUESTIONS[0] if trainer == "trl" else f"<image>{QUESTIONS[0]}")


def test_images_are_embedded_for_a_service_that_cannot_read_the_files(data: Path, tmp_path: Path) -> None:
    row = read(write_labels(str(data), "openrlhf", tmp_path / "train", embed=True).path)[0]
    (image,) = read_label(row["label"]).images
    assert image.startswith("data:image/png;base64,")


def test_columns_may_be_named(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([{"foto": "a.png", "frage": "Was ist da?", "text": "not this"}]))
    result = write_labels(str(path), "openrlhf", tmp_path / "train", image_column="foto", question_column="frage")
    label = read_label(read(result.path)[0]["label"])
    assert (label.question, label.images) == ("Was ist da?", (str(tmp_path / "a.png"),))


def test_an_unknown_trainer_and_unusable_data_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose one of easyr1, ms-swift, openrlhf"):
        write_labels(str(data), "unknown", tmp_path / "train")
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"no row can be used; data\.jsonl:1"):
        write_labels(str(data), "openrlhf", tmp_path / "train")


def test_the_command_says_what_it_wrote_and_left_out(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["label", str(data), "--trainer", "verl", "--out", str(tmp_path / "train")])
    assert result.exit_code == 0, result.output
    assert f"2 rows in {tmp_path / 'train.parquet'}  (verl: data.train_files" in result.output
    assert "left out: 1 image_missing; the first: data.jsonl:3" in result.output


def test_every_format_is_tested() -> None:
    assert set(FORMATS) == {"openrlhf", "slime", "verl", "easyr1", "roll", "ms-swift", "trl"}
