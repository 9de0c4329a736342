"""The hard world as a `World`: several questions about each scene, and a known share of compositional items."""

from typing import cast

from vlgenrm_ray.shapes.hard.corruption import corrupt_answer, prior_answer
from vlgenrm_ray.shapes.hard.prior import prior_of
from vlgenrm_ray.shapes.hard.questions import KINDS, HardQuestion, draw_question
from vlgenrm_ray.shapes.hard.render import render
from vlgenrm_ray.shapes.hard.scenes import HARD_SPLITS, ClutteredScene, HardSplit, draw_scene_of
from vlgenrm_ray.shapes.hard.truth import holds, is_sentence_true, is_true
from vlgenrm_ray.shapes.world import HARD, World, rng_of

QUESTIONS_PER_SCENE = 2
"""Consecutive questions about one image, which intervals have to treat as one cluster."""
COMPOSITIONAL_PERIOD = 4
"""Outside the train split, every fourth round of kinds is compositional: a quarter of the items."""


def draw_item(seed: int, split: str, index: int) -> tuple[ClutteredScene, HardQuestion]:
    """Draw the scene and the question at `index`. Kinds of question alternate; a scene has consecutive questions."""
    number = index // QUESTIONS_PER_SCENE
    scenes = rng_of(seed, split, number, "scene")
    of_split, prior = cast(HardSplit, split), prior_of(split)
    compositional = item_is_compositional(split, index)
    first = number * QUESTIONS_PER_SCENE
    while True:
        scene = draw_scene_of(of_split, scenes, compositional=compositional)
        # The same seed for every scene: the drawn answers are fixed, and scenes that do not fit them are skipped.
        questions = [
            draw_question(scene, KINDS[i % len(KINDS)], rng_of(seed, split, i, "question"), prior)
            for i in range(first, first + QUESTIONS_PER_SCENE)
        ]
        question = questions[index - first]
        if question is not None and None not in questions:
            return scene, question


def item_is_compositional(split: str, index: int) -> bool:
    """Return whether the item shows pairs of colour and shape that never occur in the train split."""
    return split != "train" and index // len(KINDS) % COMPOSITIONAL_PERIOD == COMPOSITIONAL_PERIOD - 1


WORLD = World(
    name=HARD,
    splits=HARD_SPLITS,
    kinds=KINDS,
    draw_item=draw_item,
    corrupt_answer=corrupt_answer,
    render=render,
    claim_is_true=holds,
    response_is_true=is_true,
    sentence_is_true=is_sentence_true,
    prior_answer=prior_answer,
    item_is_compositional=item_is_compositional,
)
