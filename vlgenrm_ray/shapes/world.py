"""The world as a data set: questions with their pictures on disk, all recoverable from their ids."""

import hashlib
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

from vlgenrm_ray.records import Claim, ImageRef, Question
from vlgenrm_ray.shapes.questions import KINDS, Asked, ask
from vlgenrm_ray.shapes.render import SIDE, render
from vlgenrm_ray.shapes.scenes import SPLITS, Scene, Split, draw_in
from vlgenrm_ray.shapes.truth import holds, is_true

SOURCE = "shapes"


def rng_of(seed: int, split: Split, index: int, use: str) -> random.Random:
    """The one source of chance of a place in the world and a use."""
    return random.Random(f"{seed}/{split}/{index}/{use}")


def draw(seed: int, split: Split, index: int) -> tuple[Scene, Asked]:
    """The scene and the question at `index`; the kinds take turns."""
    kind = KINDS[index % len(KINDS)]
    scenes = rng_of(seed, split, index, "scene")
    while True:
        scene = draw_in(split, scenes)
        # The question is drawn anew from the same seed: scenes that do not suit it are passed over, it never changes.
        asked = ask(scene, kind, rng_of(seed, split, index, "question"))
        if asked is not None:
            return scene, asked


def questions(folder: Path, *, seed: int, split: Split, count: int, start: int = 0) -> Iterator[Question]:
    """Questions `start` to `start + count - 1`, the kinds in turn.

    Each has its own scene, whose PNG goes to `folder/<sha256>.png`.

    Ids are `shapes-<split>-<seed>-<index>-<kind>`. Equal arguments give equal ids, texts and pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        scene, asked = draw(seed, split, index)
        yield Question(
            id=f"{SOURCE}-{split}-{seed}-{index:06d}-{asked.kind}",
            image=_store(scene, folder),
            text=asked.text,
            source=SOURCE,
            kind=asked.kind,
            reference=asked.reference,
        )


def _store(scene: Scene, folder: Path) -> ImageRef:
    buffer = io.BytesIO()
    render(scene).save(buffer, format="PNG")
    data = buffer.getvalue()
    name = hashlib.sha256(data).hexdigest()
    path = folder / f"{name}.png"
    if not path.exists():
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_bytes(data)
        partial.rename(path)
    return ImageRef(uri=str(path), sha256=name, width=SIDE, height=SIDE)


def scene_of(id: str) -> Scene:
    """The scene behind a question's id, or behind any id that extends it. Raises ValueError for a foreign id.

    For measuring only: the loop itself sees pictures.
    """
    source, *parts = id.split("/")[0].rsplit("-", 4)
    if source != SOURCE or len(parts) != 4 or parts[0] not in SPLITS:
        raise ValueError(f"not an id of the embedded world: {id!r}")
    return draw(int(parts[1]), parts[0], int(parts[2]))[0]


def claim_is_true(question: Question, claim: Claim) -> bool:
    """Ground truth of one claim about a question's image."""
    return holds(scene_of(question.id), claim)


def response_is_true(question: Question, text: str) -> bool:
    """Ground truth of a response to a question of the world."""
    return is_true(scene_of(question.id), question.text, text)
