"""Policy trainings of a few steps on the embedded world, by recipe and command."""

import json
from pathlib import Path
from typing import Any

import factories

from vlgenrm_ray import entrypoints
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.records import Preference
from vlgenrm_ray.shapes.pairs import gold_pairs

TRUTH = "vlgenrm_ray.shapes.world:response_is_true"
CLAIM_REWARDS = (
    "policy.rewards=[{name: truth, function: 'vlgenrm_ray.shapes.world:sentences_are_true', granularity: claim}]",
    # Long enough for descriptions, of several sentences.
    "policy.rollouts.max_tokens=96",
)
"""Settings with a reward for each sentence."""
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


def write_preferences(run: Path) -> Path:
    """Write the preferences of a run folder: true against wrong answers of the embedded world."""
    folder = StageFolder(run / "preferences")
    pairs = [
        factories.preference(f"{pair.id}/p0", question=pair.question, chosen=pair.chosen, rejected=pair.rejected)
        for pair in gold_pairs(run / "images", seed=4, split="train", count=16)
    ]
    folder.begin("f", {})
    write_units(folder, Preference, [Unit(id=pair.id, records=(pair,)) for pair in pairs])
    folder.finish(seconds=0.0)
    return run
