"""Rebuild the embedded world's pack from fixed seeds: `python jobs/build_shapes.py [vlm|detector|matcher ...]`.

Writes vlgenrm_ray/shapes/pack/<model>/ and, from the figures measured on held-out scenes, card.json and README.md
beside them. Takes about half an hour of one core; single models can be named to rebuild only those.
"""

import json
import sys
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
    """The VLM as policy and as judge, through vLLM."""

    engine = VllmGenerator(VllmConfig(model=str(folder), max_model_len=512))
    seeds = {"seed": HELD_OUT_SEED, "count": COUNT}
    with tempfile.TemporaryDirectory() as pictures:
        answers = evaluate_policy(engine, Path(pictures), **seeds)
        cot = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), engine)
        direct = Judge(JudgeConfig(mode="direct", direct_prompt="shapes_direct"), engine)
        right = np.array([float(true) for _, true in answers])
        kinds = np.array([question.kind for question, _ in answers])
        by_kind = {
            kind: estimate_as_json(wilson_interval(right[kinds == kind])) for kind in dict.fromkeys(kinds.tolist())
        }
        return {
            "answers": estimate_as_json(wilson_interval(right)) | {"by_kind": by_kind},
            "judge": judge_metrics(evaluate_judge(cot, Path(pictures), **seeds)),
            "judge_direct": judge_metrics(evaluate_judge(direct, Path(pictures), **seeds)),
        }


BUILD: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "vlm": build_vlm,
    "detector": build_detector,
    "matcher": build_matcher,
}


def main() -> None:
    figures = json.loads(model_card.PATH.read_text()) if model_card.PATH.exists() else {}
    for name in sys.argv[1:] or BUILD:
        print(f"building {name}", flush=True)
        figures[name] = BUILD[name](pack_path(name), SEED) | (measure_vlm(pack_path(name)) if name == "vlm" else {})
        print(json.dumps(figures[name], indent=1), flush=True)
        model_card.write(figures)


if __name__ == "__main__":
    main()
