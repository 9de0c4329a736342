"""Builds the embedded world's VLM: one tiny Qwen3-VL that is both the policy and the base GenRM."""

from pathlib import Path

from vlgenrm_ray.shapes.building.vlm_data import Album
from vlgenrm_ray.shapes.building.vlm_model import build_model
from vlgenrm_ray.shapes.building.vlm_tokenizer import build_processor
from vlgenrm_ray.shapes.building.vlm_training import Lessons, teach


def build_vlm(folder: Path, seed: int, lessons: Lessons | None = None) -> dict[str, float]:
    """Make tokenizer, processor and model, train them, write a Hugging Face folder of bfloat16 safetensors.

    Returns what the training was: its settings, the last loss, the seconds, the number of parameters.
    """
    import torch

    lessons = lessons or Lessons()
    torch.set_num_threads(1)  # One thread, so that equal seeds give equal weights on equal machines.
    processor = build_processor()
    model = build_model(processor.tokenizer, seed)
    album = Album.drawn(processor, size=lessons.scenes, seed=seed)
    figures = teach(model, album, lessons, seed)
    # Stored as bfloat16: half the size, and every engine starts from the very same numbers.
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed,
        "steps": lessons.steps,
        "horizon": lessons.horizon,
        "batch": lessons.batch,
        "scenes": lessons.scenes,
        "judge_examples": lessons.num_judgements,
        "misled": lessons.misled,
        **figures,
    }
