"""Policy trainings of a few steps on the embedded world, by recipe and command."""

import json
from pathlib import Path
from typing import Any

from vlgenrm_ray import entrypoints

TRUTH = "vlgenrm_ray.shapes.world:response_is_true"
RECIPE = f"""
base: pack:vlm
pool: {{source: shapes, split: train, seed: 10, count: 16}}
heldout: {{source: shapes, split: heldout, seed: 2, count: 8}}
policy:
  rewards: [{{name: truth, function: "{TRUTH}"}}]
  steps: 4
  questions_per_step: 4
  tokens_per_batch: 2048
  rollouts:
    engine: {{max_model_len: 384, max_num_seqs: 64, kv_cache_gib: 0.05, threads: 1}}
    num_cpus: 0.5
    group_size: 4
    max_tokens: 32
  engine: {{zero_stage: 0, learning_rate: 1.0e-4, schedule: cosine, freeze_vision: true}}
  checkpoint_every: 1
  evaluation: {{every: 2, measure: "{TRUTH}"}}
  samples_every: 2
"""


def write_recipe(folder: Path) -> Path:
    """Write the recipe to a file."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def train(recipe: Path, run: Path, *overrides: str) -> dict[str, Any]:
    """Train, and return the summary."""
    return entrypoints.train_policy(recipe, run=run, overrides=overrides)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def served_reward(port: int) -> tuple[str, str]:
    """Return settings with a served reward as the only measure."""
    url = f"http://127.0.0.1:{port}"
    return f"policy.rewards=[{{name: served, url: '{url}', retries: 0}}]", "policy.evaluation.measure=''"
