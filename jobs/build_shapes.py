"""Rebuild the embedded world's pack from fixed seeds: `python jobs/build_shapes.py [vlm|detector|matcher ...]`.

Writes vlgenrm_ray/shapes/pack/<model>/ and, from the figures measured on held-out scenes, card.json and README.md
beside them. Takes about half an hour of one core; single models can be named to rebuild only those.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.evaluation.metrics import plain, summary, wilson
from vlgenrm_ray.judge.judge import Judge, JudgeConfig
from vlgenrm_ray.shapes import card, pack_path
from vlgenrm_ray.shapes.experts_pack import build_detector, build_matcher
from vlgenrm_ray.shapes.vlm_figures import answered, judged
from vlgenrm_ray.shapes.vlm_pack import build_vlm

SEED, HELD_OUT_SEED, COUNT = 0, 1, 1000


def measure_vlm(folder: Path) -> dict[str, Any]:
    """The VLM as policy and as judge, through vLLM."""
    import numpy as np

    engine = VllmGenerator(VllmConfig(model=str(folder), max_model_len=512))
    with tempfile.TemporaryDirectory() as pictures:
        answers = answered(engine, Path(pictures), seed=HELD_OUT_SEED, count=COUNT)
        cot = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), engine)
        direct = Judge(JudgeConfig(mode="direct", direct_prompt="shapes_direct"), engine)
        right = np.array([float(true) for _, true in answers])
        kinds = np.array([question.kind for question, _ in answers])
        by_kind = {kind: plain(wilson(right[kinds == kind])) for kind in dict.fromkeys(kinds.tolist())}
        return {
            "answers": plain(wilson(right)) | {"by_kind": by_kind},
            "judge": summary(judged(cot, Path(pictures), seed=HELD_OUT_SEED, count=COUNT)),
            "judge_direct": summary(judged(direct, Path(pictures), seed=HELD_OUT_SEED, count=COUNT)),
        }


Build = Callable[[Path, int], dict[str, Any]]
BUILD: dict[str, Build] = {"vlm": build_vlm, "detector": build_detector, "matcher": build_matcher}


def main() -> None:
    figures = json.loads(card.FILE.read_text()) if card.FILE.exists() else {}
    for name in sys.argv[1:] or BUILD:
        print(f"building {name}", flush=True)
        figures[name] = BUILD[name](pack_path(name), SEED)
        if name == "vlm":
            figures[name] |= measure_vlm(pack_path(name))
        print(json.dumps(figures[name], indent=1), flush=True)
        card.write(figures)


if __name__ == "__main__":
    main()
