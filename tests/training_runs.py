"""Trainings of the training stage in miniature, whole or ended by Ctrl-C."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from interruptions import when_steps_are_done
from world_examples import draw_examples, write_stage_folder

from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.reward.training import TrainingConfig, TrainingResult, run
from vlgenrm_ray.shapes import pack_path

CONFIG = TrainingConfig(
    workers=2,
    num_cpus=1,
    epochs=2,
    examples_per_step=4,
    tokens_per_batch=512,
    checkpoint_every=2,
    num_probes=4,
    engine=DeepSpeedConfig(zero_stage=2, precision="fp32", learning_rate=3e-4),
)
TOO_LONG = "p-long"
NO_IMAGE = "p-no-image"


def write_selection(folder: Path) -> StageFolder:
    """Write thirty valid examples, one that is too long and one without its image."""
    examples = draw_examples(folder / "images", 6)
    too_long = replace(examples[0], id=TOO_LONG, completion=examples[0].completion * 40)
    no_image = replace(examples[1], id=NO_IMAGE, image=replace(examples[1].image, uri=str(folder / "gone.png")))
    return write_stage_folder(folder / "selection", [*examples, too_long, no_image])


def train(selection: StageFolder, target: Path) -> TrainingResult:
    """Train on the selection with two workers."""
    return run(CONFIG, base=pack_path("vlm"), examples=selection, target=target, round=1)


def train_until_ctrl_c(selection: StageFolder, target: Path) -> None:
    """Train until Ctrl-C after the first checkpoints."""
    handler = signal.getsignal(signal.SIGINT)
    with when_steps_are_done(target, 3, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        train(selection, target)
    assert not (target / "manifest.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def metrics(target: Path) -> list[dict[str, Any]]:
    """Return the metrics of each step."""
    return [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]


def weights(target: Path) -> list[float]:
    """Return some of the exported weights."""
    from safetensors.torch import load_file

    tensors = load_file(target / "model" / "model.safetensors")
    return [float(v) for name in sorted(tensors)[:20] for v in tensors[name].flatten()[:10]]
