"""The basic world: up to five coloured shapes on a plain background, one question about each scene."""

from typing import cast

from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.questions import KINDS, ShapesQuestion, draw_question
from vlgenrm_ray.shapes.render import render
from vlgenrm_ray.shapes.scenes import SPLITS, Scene, Split, draw_scene_of
from vlgenrm_ray.shapes.truth import holds, is_sentence_true, is_true
from vlgenrm_ray.shapes.world import BASIC, World, rng_of


def draw_item(seed: int, split: str, index: int) -> tuple[Scene, ShapesQuestion]:
    """Draw the scene and the question at `index`. Kinds of question alternate."""
    kind = KINDS[index % len(KINDS)]
    scenes = rng_of(seed, split, index, "scene")
    while True:
        scene = draw_scene_of(cast(Split, split), scenes)
        # The same seed for every scene: the drawn answer is fixed, and scenes that do not fit it are skipped.
        question = draw_question(scene, kind, rng_of(seed, split, index, "question"))
        if question is not None:
            return scene, question


WORLD = World(
    name=BASIC,
    splits=SPLITS,
    kinds=KINDS,
    draw_item=draw_item,
    corrupt_answer=corrupt_answer,
    render=render,
    claim_is_true=holds,
    response_is_true=is_true,
    sentence_is_true=is_sentence_true,
)
