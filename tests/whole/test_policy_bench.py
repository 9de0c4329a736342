"""Bench of policy training with both real trainers, ours and TRL's, on a tiny recipe."""

import json

import pytest

from vlgenrm_ray import config
from vlgenrm_ray.bench.policy import PolicyBench, PolicyBenchConfig, build_rows
from vlgenrm_ray.entrypoints import shipped_recipe

TINY = ("questions_per_step=2", "rollouts.group_size=4", "rollouts.max_tokens=16", "rollouts.engine.kv_cache_gib=0.05")


def test_both_trainers_run_the_same_steps() -> None:
    recipe = config.load_policy(shipped_recipe("shapes_grpo"), tuple(f"policy.{setting}" for setting in TINY))
    bench_config = PolicyBenchConfig(
        parts=("trl", "phases"), steps=2, warmup=1, turns=1, micro_batches=2, generations=("transformers",)
    )
    log: list[str] = []
    bench = PolicyBench(bench_config, recipe, log.append)
    results = bench.run()
    assert len(log) == 2
    ours, theirs = results["trl"]["ours"], results["trl"]["others"]["transformers"]
    assert results["trl"]["ratio"] == pytest.approx(ours["samples_per_s"] / theirs["samples_per_s"], abs=1e-3)
    for side in (ours, theirs):
        # 8 samples a step; the phases cover all of it but the gaps between them.
        assert side["samples_per_s"] == pytest.approx(8 / side["step_s"], rel=1e-2)
        assert 1 <= side["tokens_per_sample"] <= 16
        assert 0.0 <= side["reward"] <= 1.0
    assert theirs["sampling_s"] + theirs["scoring_s"] + theirs["learn_s"] == pytest.approx(theirs["step_s"], rel=0.05)
    assert ours["wait_s"] + ours["learn_s"] + ours["sync_s"] <= ours["step_s"]
    assert sum(results["phases"].values()) == pytest.approx(100.0, abs=0.1)
    assert len(list(build_rows(results))) == 5
    json.dumps(bench.settings())
