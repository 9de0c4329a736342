"""Exports for TRL, batched by the data collators of its trainers with the embedded world's model."""

from pathlib import Path
from typing import Any

import pytest
from world_examples import draw_examples, write_stage_folder

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.records import Preference
from vlgenrm_ray.report.exports import export
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs


def load(path: Path, cache: Path) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return list(load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache)))


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(pack_path("vlm"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    pairs = list(gold_pairs(run / "pool" / "images", seed=0, split="train", count=2))
    folder = StageFolder(run / "preferences")
    folder.begin("settings", {})
    write_units(folder, Preference, [Unit(id=p.question.id, records=(p,)) for p in pairs])
    folder.finish(seconds=0.0)
    write_stage_folder(run / "round-1" / "selection", draw_examples(run / "pool" / "images", 2))
    return run


def test_preferences_fit_the_collator_of_the_dpo_trainer(run: Path, tmp_path: Path, processor: Any) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    path, _ = export(run, "preferences", "trl", tmp_path / "out")
    batch = DataCollatorForVisionPreference(processor)(load(path, tmp_path / "cache"))
    assert len(batch["input_ids"]) == 4, "two pairs, chosen and rejected"
    assert batch["pixel_values"].shape[0] > 0


def test_examples_fit_the_collator_of_the_sft_trainer(run: Path, tmp_path: Path, processor: Any) -> None:
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    path, num_rows = export(run, "examples", "trl", tmp_path / "out")
    batch = DataCollatorForVisionLanguageModeling(processor)(load(path, tmp_path / "cache"))
    assert len(batch["input_ids"]) == num_rows == 10
    assert (batch["labels"] != -100).any()
