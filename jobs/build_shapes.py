"""Rebuild the pack of an embedded world from fixed seeds: `python jobs/build_shapes.py [--world hard] [MODEL ...]`.

Writes the models to the world's folder in vlgenrm_ray/shapes/pack/, measures them on scenes that they have never seen,
and writes the metrics to card.json and README.md there. All three models take about half an hour on one core, those of
the hard world about an hour; name models (vlm, detector, matcher) to rebuild only those.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlgenrm_ray.bench.pack import measure_experts, measure_vlm
from vlgenrm_ray.shapes.building import model_card
from vlgenrm_ray.shapes.building.experts_training import build_detector, build_matcher
from vlgenrm_ray.shapes.building.packs import PackPlan, pack_plan
from vlgenrm_ray.shapes.building.vlm_training import build_vlm
from vlgenrm_ray.shapes.world import BASIC, HARD

SEED = 0
WORLDS = {"basic": BASIC, "hard": HARD}
BUILDERS: Mapping[str, Callable[[PackPlan, Path], dict[str, Any]]] = {
    "vlm": lambda plan, folder: build_vlm(folder, plan.vlm, SEED),
    "detector": lambda plan, folder: build_detector(folder, plan.experts, SEED, plan.detector_steps),
    "matcher": lambda plan, folder: build_matcher(folder, plan.experts, SEED, plan.matcher_steps),
}


def main() -> None:
    """Build and measure the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default="all", choices=[*BUILDERS, "all"], help="models to build")
    parser.add_argument("--world", default="basic", choices=[*WORLDS], help="world whose pack is built")
    parser.add_argument("--measure-only", action="store_true", help="measure the models that are there")
    options = parser.parse_args()
    plan = pack_plan(WORLDS[options.world])
    card = plan.folder / "card.json"
    metrics = json.loads(card.read_text()) if card.exists() else {}
    names = [*BUILDERS] if "all" in options.models else options.models
    for name in names:
        if not options.measure_only:
            print(f"building {name}", flush=True)
            metrics[name] = BUILDERS[name](plan, plan.folder / name)
        if name == "vlm":
            metrics[name] = metrics.get(name, {}) | measure_vlm(plan)
        print(json.dumps(metrics[name], indent=1), flush=True)
        model_card.write(plan, metrics)
    if {"detector", "matcher"} & {*names}:
        metrics["experts"] = measure_experts(plan)
        model_card.write(plan, metrics)


if __name__ == "__main__":
    main()
