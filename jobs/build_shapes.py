"""Rebuild the embedded world's pack from fixed seeds: `python jobs/build_shapes.py [vlm|detector|matcher ...]`.

Writes the models to vlgenrm_ray/shapes/pack/<model>/, measures them on held-out scenes, and writes the metrics to
card.json and README.md there. All three take about half an hour on one core; name models to rebuild only those.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.evaluation.metrics import estimate_as_json, judge_metrics, wilson_interval
from vlgenrm_ray.judge.judge import Judge, JudgeConfig
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.building import model_card
from vlgenrm_ray.shapes.building.experts_training import build_detector, build_matcher
from vlgenrm_ray.shapes.building.vlm_evaluation import evaluate_judge, evaluate_policy
from vlgenrm_ray.shapes.building.vlm_training import build_vlm

SEED, HELD_OUT_SEED, COUNT = 0, 1, 1000


def measure_vlm(folder: Path) -> dict[str, Any]:
    """Measure the VLM as policy and as judge, with vLLM."""
    engine = VllmGenerator(VllmConfig(model=str(folder), max_model_len=512))
    seeds = {"seed": HELD_OUT_SEED, "count": COUNT}
    with tempfile.TemporaryDirectory() as images:
        answers = evaluate_policy(engine, Path(images), **seeds)
        cot = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), engine)
        direct = Judge(JudgeConfig(mode="direct", direct_prompt="shapes_direct"), engine)
        correct = np.array([float(true) for _, true in answers])
        kinds = np.array([question.kind for question, _ in answers])
        by_kind = {
            kind: estimate_as_json(wilson_interval(correct[kinds == kind])) for kind in dict.fromkeys(kinds.tolist())
        }
        return {
            "answers": estimate_as_json(wilson_interval(correct)) | {"by_kind": by_kind},
            "judge": judge_metrics(evaluate_judge(cot, Path(images), **seeds)),
            "judge_direct": judge_metrics(evaluate_judge(direct, Path(images), **seeds)),
        }


BUILDERS: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "vlm": build_vlm,
    "detector": build_detector,
    "matcher": build_matcher,
}


def main() -> None:
    """Build the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default="all", choices=[*BUILDERS, "all"], help="models to build")
    models = parser.parse_args().models
    metrics = json.loads(model_card.PATH.read_text()) if model_card.PATH.exists() else {}
    for name in BUILDERS if "all" in models else models:
        print(f"building {name}", flush=True)
        metrics[name] = BUILDERS[name](pack_path(name), SEED) | (measure_vlm(pack_path(name)) if name == "vlm" else {})
        print(json.dumps(metrics[name], indent=1), flush=True)
        model_card.write(metrics)


if __name__ == "__main__":
    main()
