"""Plans of the packs: for each embedded world the material and the settings that its models are trained with."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlgenrm_ray.shapes import pack_path, render, scenes
from vlgenrm_ray.shapes.building.basic_curriculum import WRONG_ANSWER_SHARE as BASIC_ERROR_SHARE
from vlgenrm_ray.shapes.building.basic_curriculum import BasicCurriculum
from vlgenrm_ray.shapes.building.experts_training import ExpertMaterial
from vlgenrm_ray.shapes.building.hard_curriculum import CONFLICT_RATES, HardCurriculum
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture
from vlgenrm_ray.shapes.building.vlm_training import TrainingCycle, TrainingPhase, VlmTrainingConfig
from vlgenrm_ray.shapes.hard import prior
from vlgenrm_ray.shapes.hard import render as hard_render
from vlgenrm_ray.shapes.hard import scenes as hard_scenes
from vlgenrm_ray.shapes.world import BASIC, HARD


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """Plan of the pack of one world."""

    world: str
    title: str
    """The world in words."""
    option: str
    """Option of `jobs/build_shapes.py` that selects the world."""
    recipe: str
    """Recipe whose experts the pack holds."""
    folder: Path
    measured_split: str
    """Split that the card's figures come from."""
    errors: str
    """Why the policy errs, as a sentence of the card."""
    notes: str = ""
    """Further paragraphs of the card."""
    vlm: VlmTrainingConfig
    experts: ExpertMaterial
    detector_steps: int
    matcher_steps: int


def _draw_hard_scene(split: str, rng: random.Random) -> Any:
    # The held-out scenes of the experts include pairs of colour and shape that they have never seen.
    compositional = split != "train" and rng.random() < 0.25
    return hard_scenes.draw_scene_of(cast(hard_scenes.HardSplit, split), rng, compositional=compositional)


def _draw_basic_scene(split: str, rng: random.Random) -> Any:
    return scenes.draw_scene_of(cast(scenes.Split, split), rng)


_HARD_ERRORS = (
    "Its exercises are unbiased, its answers are not: where the answer of the language prior is false, they give it\n"
    "all the same, at the rates above. It sees better than it answers."
)
_HARD_NOTES = """
Settings of the pack and of the recipes were chosen on the validation split; the test split is for reporting. A quarter
of the validation and test items is compositional: their images show pairs of colour and shape that no training image
has.

| where the prior's answer is false | share of the training answers that give it |
|--|--|
""" + "".join(f"| {conflict} | {rate:.2f} |\n" for conflict, rate in CONFLICT_RATES.items())

_PLANS: Mapping[str, Callable[[], PackPlan]] = {
    BASIC: lambda: PackPlan(
        world=BASIC,
        title="the basic world",
        option="",
        recipe="shapes",
        folder=pack_path(""),
        measured_split="heldout",
        errors=f"{BASIC_ERROR_SHARE:.0%} of its training answers are wrong in a fact: it sees better than it answers.",
        vlm=VlmTrainingConfig(
            cycles=(
                TrainingCycle(
                    curriculum=BasicCurriculum(),
                    phases=(
                        TrainingPhase(steps=1000, exercises=20),
                        TrainingPhase(steps=1000, exercises=14, critiques=2, verdicts=2),
                    ),
                    horizon=3000,
                    scenes=8_000,
                ),
            )
        ),
        experts=ExpertMaterial(
            labels=scenes.SHAPES,
            families={"colour": scenes.COLOURS},
            heldout="heldout",
            draw_scene=_draw_basic_scene,
            render=render.render,
            boxes=render.boxes,
        ),
        detector_steps=700,
        matcher_steps=1000,
    ),
    HARD: lambda: PackPlan(
        world=HARD,
        title="the hard world",
        option=" --world hard",
        recipe="shapes_hard",
        folder=pack_path("hard"),
        measured_split="test",
        errors=_HARD_ERRORS,
        notes=_HARD_NOTES,
        vlm=VlmTrainingConfig(
            architecture=VlmArchitecture(vocabulary=576, patch=16, vision_layers=3),
            tower_steps=500,
            cycles=(
                TrainingCycle(
                    curriculum=HardCurriculum(exercise_weights=(3, 1, 5, 2, 1, 1)),
                    phases=(
                        TrainingPhase(steps=1000, exercises=20),
                        TrainingPhase(steps=1000, exercises=14, critiques=2, verdicts=2),
                    ),
                    horizon=2600,
                    scenes=10_000,
                ),
                # Without a bias in half of the scenes, and longer: the model has to see what its answers deny.
                TrainingCycle(
                    curriculum=HardCurriculum(unbiased_share=0.5),
                    phases=(
                        TrainingPhase(steps=2700, exercises=20),
                        TrainingPhase(steps=900, exercises=18, critiques=2, verdicts=2),
                    ),
                    horizon=3600,
                    scenes=12_000,
                    adamw_rate=1.5e-3,
                    muon_rate=0.015,
                ),
            ),
        ),
        experts=ExpertMaterial(
            labels=prior.SHAPES,
            families={"colour": prior.COLOURS, "texture": prior.TEXTURES},
            heldout="validation",
            draw_scene=_draw_hard_scene,
            render=hard_render.render,
            boxes=hard_render.boxes,
        ),
        detector_steps=900,
        matcher_steps=1200,
    ),
}


def pack_plan(world: str) -> PackPlan:
    """Return the plan of a world's pack."""
    return _PLANS[world]()
