"""Scenes, images and questions: deterministic, in disjoint splits, evenly distributed."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.shapes import basic, world
from vlgenrm_ray.shapes.questions import KINDS, MAX_COUNT
from vlgenrm_ray.shapes.render import SIDE, boxes, render
from vlgenrm_ray.shapes.scenes import CELLS, SPLITS, draw_scene, split_of

SEEDS = st.integers(0, 2**32)


def content(scene: object) -> tuple[object, ...]:
    return tuple((t.name, t.cell) for t in scene.objects)  # type: ignore[attr-defined]


def test_splits_share_no_scene() -> None:
    seen = {split: {content(basic.draw_item(0, split, i)[0]) for i in range(300)} for split in SPLITS}
    for one in SPLITS:
        for two in SPLITS:
            assert one == two or not seen[one] & seen[two]


def test_split_ignores_how_a_scene_looks() -> None:
    scenes = [draw_scene(random.Random(i)) for i in range(4000)]
    splits: dict[tuple[object, ...], set[str]] = {}
    for scene in scenes:
        splits.setdefault(content(scene), set()).add(split_of(scene))
    assert len(splits) < len(scenes), "no scene came twice: the test shows nothing"
    assert all(len(s) == 1 for s in splits.values())


@given(SEEDS)
def test_objects_lie_in_their_cells_and_in_order(seed: int) -> None:
    scene = draw_scene(random.Random(seed))
    cells = [t.cell for t in scene.objects]
    assert cells == sorted(set(cells))
    assert 1 <= len(cells) <= 5
    side = SIDE / 3
    for thing, box in zip(scene.objects, boxes(scene), strict=True):
        assert box.label == thing.shape
        assert thing.column * side <= box.x0 < box.x1 <= (thing.column + 1) * side
        assert thing.row * side <= box.y0 < box.y1 <= (thing.row + 1) * side
        assert box.x1 - box.x0 > 20


def test_true_boxes_contain_all_drawn_pixels() -> None:
    """A scene's picture differs from its background inside the true boxes and nowhere else."""
    from PIL import ImageChops

    for seed in range(20):
        scene = draw_scene(random.Random(seed))
        empty = type(scene)(objects=(), background=scene.background)
        difference = ImageChops.difference(render(scene), render(empty)).convert("L")
        for box in boxes(scene):
            corners = (int(box.x0) - 1, int(box.y0) - 1, int(box.x1) + 2, int(box.y1) + 2)
            bounds = difference.crop(corners).getbbox()
            assert bounds is not None
            assert bounds[2] - bounds[0] >= box.x1 - box.x0 - 2
            difference.paste(0, (max(corners[0], 0), max(corners[1], 0), *corners[2:]))
        assert difference.getbbox() is None


@pytest.mark.parametrize("split", SPLITS)
def test_equal_seeds_give_equal_questions_and_images(tmp_path: Path, split: str) -> None:
    one = list(world.questions(tmp_path / "a", seed=3, split=split, count=10))  # type: ignore[arg-type]
    two = list(world.questions(tmp_path / "b", seed=3, split=split, count=10))  # type: ignore[arg-type]
    other = list(world.questions(tmp_path / "a", seed=4, split=split, count=10))  # type: ignore[arg-type]
    assert [(q.id, q.text, q.reference, q.image.sha256) for q in one] == [
        (q.id, q.text, q.reference, q.image.sha256) for q in two
    ]
    assert not {q.id for q in one} & {q.id for q in other}
    assert not {q.image.sha256 for q in one} & {q.image.sha256 for q in other}


def test_the_id_of_a_question_determines_its_scene(tmp_path: Path) -> None:
    for question in world.questions(tmp_path, seed=3, split="heldout", count=10):
        scene = world.scene_of(f"{question.id}/r0/e")
        assert render(scene).tobytes() == read(question.image, ImageLimits()).tobytes()
        assert split_of(scene) == "heldout"
        assert question.id.endswith(f"-{question.kind}")


@pytest.mark.parametrize("id", ["q1", "shapes-train-0-1", "shapes-dev-0-000001-count", "photos-train-0-000001-count"])
def test_foreign_ids_are_refused(id: str) -> None:
    with pytest.raises(ValueError, match="not an id of an embedded world"):
        world.scene_of(id)


def test_questions_and_answers_are_evenly_spread() -> None:
    items = [basic.draw_item(11, "train", i)[1] for i in range(5 * 400)]
    assert Counter(a.kind for a in items) == dict.fromkeys(KINDS, 400)
    yes = sum(a.reference.startswith("Yes") for a in items if a.kind == "existence")
    assert 160 <= yes <= 240
    counts = Counter(a.reference.split()[2] for a in items if a.kind == "count")
    assert len(counts) == MAX_COUNT + 1
    assert min(counts.values()) >= 70
    sides = Counter(a.reference.split()[4] for a in items if a.kind == "spatial")
    assert min(sides.values()) >= 70
    colours = Counter(a.reference.split()[-1] for a in items if a.kind == "attribute")
    assert len(colours) == 6
    assert min(colours.values()) >= 40


def test_every_cell_is_used() -> None:
    cells = Counter(t.cell for i in range(500) for t in draw_scene(random.Random(i)).objects)
    assert len(cells) == len(CELLS)
    assert max(cells.values()) < 1.5 * min(cells.values())
