"""Gold preference pairs: a true answer, and the same answer with one fact changed."""

from collections.abc import Iterator
from pathlib import Path

from vlgenrm_ray.records import Origin, Preference
from vlgenrm_ray.shapes.world import BASIC, load_world, questions, rng_of


def gold_pairs(
    folder: Path, *, seed: int, split: str, count: int, start: int = 0, world: str = BASIC
) -> Iterator[Preference]:
    """Generate `count` labelled pairs of a world for evaluation; kinds alternate, images are written to `folder`."""
    pair_world = load_world(world)
    drawn_questions = questions(folder, seed=seed, split=split, count=count, start=start, world=world)
    for index, question in enumerate(drawn_questions, start):
        scene, drawn = pair_world.draw_item(seed, split, index)
        wrong = pair_world.corrupt_answer(scene, drawn, rng_of(seed, split, index, "wrong"))
        yield Preference(
            id=f"{question.id}/gold",
            question=question,
            chosen=drawn.reference,
            rejected=wrong,
            origin=Origin.GOLD,
            kind=drawn.kind,
            evidence="ground truth",
        )
