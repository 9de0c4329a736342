"""A run folder that is moved: its stages are continued, read and traced at the new place."""

import sys
from pathlib import Path

import pytest

from vlgenrm_ray.curation import pool
from vlgenrm_ray.curation.pool import HeldoutConfig
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.evaluation import heldout, pairs
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Preference, Question
from vlgenrm_ray.report.trace import trace

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
POOL = HeldoutConfig(source="shapes", split="heldout", count=8)
EVALUATION = EvaluationConfig(engine=VllmConfig(), actors=ActorPoolConfig(num_cpus=0.5, batch_size=8))


def scripted(config: VllmConfig) -> ScriptedGenerator:
    return ScriptedGenerator(lambda prompt, chance: "Verdict: Yes")


@pytest.mark.usefixtures("ray_local")
def test_a_moved_run_is_continued_and_traced(tmp_path: Path) -> None:
    from ray import cloudpickle

    # Workers cannot import this file, so `scripted` travels as code.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    run = tmp_path / "run"
    manifest = pool.run(POOL, target=StageFolder(run / "heldout-pool"))
    heldout.run(source=StageFolder(run / "heldout-pool"), target=StageFolder(run / "heldout"))
    run.rename(tmp_path / "moved")
    run = tmp_path / "moved"

    assert pool.run(POOL, target=StageFolder(run / "heldout-pool")) == manifest
    uris = [q.image.uri for q in StageFolder(run / "heldout-pool").records(Question)]
    assert all(uri.startswith(str(run / "heldout-pool" / "images")) and Path(uri).exists() for uri in uris)
    source, target = StageFolder(run / "heldout"), StageFolder(run / "round-0" / "evaluation")
    manifest = pairs.run(EVALUATION, judge=JUDGE, model="/none", source=source, target=target, build=scripted)
    assert (manifest.rows_in, manifest.dropped, manifest.metrics["num_pairs"]) == (8, {}, 8)
    id = next(source.records(Preference)).id
    text = trace(run, id)
    assert f"judged {id}" in text
    assert str(run / "heldout-pool" / "images") in text.replace("\n      ", "")
