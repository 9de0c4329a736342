"""The evaluation stage on Ray Data with a scripted judge: results, drops, metrics."""

import sys
from pathlib import Path

import pytest

from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.evaluation import pairs
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import PairResult, Preference
from vlgenrm_ray.shapes.pairs import gold_pairs

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
CONFIG = EvaluationConfig(engine=VllmConfig(), actors=ActorPoolConfig(num_cpus=0.5, batch_size=16), no_image_share=0.5)


def build(config: VllmConfig) -> ScriptedGenerator:
    return ScriptedGenerator(lambda prompt, chance: f"Verdict: {chance.choice(['Yes', 'No'])}")


def heldout(run: Path, count: int) -> tuple[StageFolder, list[Preference]]:
    gold = list(gold_pairs(run / "images", seed=0, split="heldout", count=count))
    folder = StageFolder(run / "heldout")
    folder.begin("settings", {})
    write_units(folder, Preference, [Unit(id=p.question.id, records=(p,)) for p in gold])
    folder.finish(seconds=0.0)
    return folder, gold


@pytest.mark.usefixtures("ray_local")
def test_every_pair_is_judged_once_and_the_metrics_are_in_the_manifest(run_folder: Path) -> None:
    from ray import cloudpickle

    # Workers cannot import this file, so `build` travels as code.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    source, gold = heldout(run_folder, 40)
    target = StageFolder(run_folder / "round-0" / "evaluation")
    Path(gold[0].question.image.uri).unlink()

    manifest = pairs.run(CONFIG, judge=JUDGE, model="/none", source=source, target=target, build=build)

    units = {u.id: u for u in target.units(PairResult)}
    assert units.keys() == {p.id for p in gold}
    dropped_units = [u for u in units.values() if u.dropped]
    assert {d.reason for u in dropped_units for d in u.dropped} == {"image_missing"}
    metrics = manifest.metrics
    assert metrics["num_pairs"] == 40 - len(dropped_units) > 30
    assert metrics["baselines"]["no_image"]["num_pairs"] == sum(len(u.records) == 2 for u in units.values()) > 5
    assert metrics["verdict_coverage"] == 1.0
    assert set(metrics["by_kind"]) == {"attribute", "count", "describe", "existence", "spatial"}
    assert manifest.num_tokens > 0


def test_without_pairs_or_a_model_nothing_starts(run_folder: Path) -> None:
    source, _ = heldout(run_folder, 0)
    target = StageFolder(run_folder / "evaluation")
    with pytest.raises(StageError, match="no pair to judge"):
        pairs.run(CONFIG, judge=JUDGE, model="/none", source=source, target=target, build=build)
    with pytest.raises(InputError, match="/none"):
        pairs.run(CONFIG, judge=JUDGE, model="/none", source=source, target=target)
