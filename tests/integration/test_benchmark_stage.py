"""Benchmarks of an engine on Ray Data: one pool of actors for all of them, and a finished run is not asked again."""

import sys
from pathlib import Path

import pytest
from benchmark_files import ours, write_lines
from PIL import Image

from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, measure_engine
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.judge.config import JudgeConfig

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
CONFIG = EvaluationConfig(engine=VllmConfig(), actors=ActorPoolConfig(num_cpus=0.5, batch_size=16), no_image_share=0.5)


def build(config: VllmConfig) -> ScriptedGenerator:
    return ScriptedGenerator(lambda prompt, chance: f"Verdict: {'Yes' if 'good' in prompt.text else 'No'}")


@pytest.mark.usefixtures("ray_local")
def test_two_benchmarks_share_the_actors_and_a_finished_run_is_only_read(run_folder: Path) -> None:
    from ray import cloudpickle

    # Workers cannot import this file, so `build` travels as code.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    run_folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (200, 10, 10)).save(run_folder / "x.png")
    pairs = [
        {
            "id": f"wildvision-{i}",
            "query": "What is it?",
            "response": ["good", "bad"],
            "human_ranking": [0, 1],
            "image": "x.png",
        }
        for i in range(40)
    ]
    questions = [{"question_id": i, "image": "x.png", "text": "Is it red?", "label": "no"} for i in range(10)]
    tasks = [
        BenchmarkTask(name="vl_rewardbench", data=write_lines(run_folder / "pairs.jsonl", pairs)),
        BenchmarkTask(name="pope", data=write_lines(run_folder / "pope.jsonl", questions)),
    ]
    folder = run_folder / "benchmarks"

    def measure() -> list[dict[str, object]]:
        results = measure_engine(tasks, CONFIG, judge=JUDGE, model="/none", role=None, folder=folder, build=build)
        return [result.as_json() for result in results]

    first = measure()
    assert ours(first[0], "overall accuracy") == 1.0
    assert 0 < first[0]["baselines"]["no image"]["ours"]["num"] < 40  # type: ignore[index]
    assert ours(first[1], "accuracy") == 1.0, "the scripted policy says Verdict: No"
    assert measure() == first
