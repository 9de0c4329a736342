"""The embedded world as a data set: questions with their images on disk, all recoverable from their ids."""

import hashlib
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

from vlgenrm_ray.judge import sentences
from vlgenrm_ray.records import Claim, ImageRef, Question
from vlgenrm_ray.rewards.reward import SegmentedReward, sentence_segments
from vlgenrm_ray.shapes.questions import KINDS, ShapesQuestion, draw_question
from vlgenrm_ray.shapes.render import SIDE, render
from vlgenrm_ray.shapes.scenes import SPLITS, Scene, Split, draw_scene_of
from vlgenrm_ray.shapes.truth import claims, holds, is_true

SOURCE = "shapes"


def rng_of(seed: int, split: Split, index: int, use: str) -> random.Random:
    """Return the random generator of one item (seed, split, index) for one use ("scene", "question", "wrong")."""
    return random.Random(f"{seed}/{split}/{index}/{use}")


def draw_item(seed: int, split: Split, index: int) -> tuple[Scene, ShapesQuestion]:
    """Draw the scene and the question at `index`. Kinds of question alternate."""
    kind = KINDS[index % len(KINDS)]
    scenes = rng_of(seed, split, index, "scene")
    while True:
        scene = draw_scene_of(split, scenes)
        # The same seed for every scene: the drawn answer is fixed, and scenes that do not fit it are skipped.
        question = draw_question(scene, kind, rng_of(seed, split, index, "question"))
        if question is not None:
            return scene, question


def questions(folder: Path, *, seed: int, split: Split, count: int, start: int = 0) -> Iterator[Question]:
    """Generate questions `start` to `start + count - 1`; kinds alternate.

    Every question has its own scene, whose PNG is written to `folder/<sha256>.png`. Ids are
    `shapes-<split>-<seed>-<index>-<kind>`. Equal arguments give equal ids, texts and images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        scene, drawn = draw_item(seed, split, index)
        yield Question(
            id=f"{SOURCE}-{split}-{seed}-{index:06d}-{drawn.kind}",
            image=_store(scene, folder),
            text=drawn.text,
            source=SOURCE,
            kind=drawn.kind,
            reference=drawn.reference,
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
    """Redraw the scene of a question's id, or of any id that extends it. Raises ValueError for a foreign id.

    For measuring only: the training loop sees images.
    """
    source, *parts = id.split("/")[0].rsplit("-", 4)
    if source != SOURCE or len(parts) != 4 or parts[0] not in SPLITS:
        raise ValueError(f"not an id of the embedded world: {id!r}")
    return draw_item(int(parts[1]), parts[0], int(parts[2]))[0]


def claim_is_true(question: Question, claim: Claim) -> bool:
    """Return the ground truth of one claim about a question's image."""
    return holds(scene_of(question.id), claim)


def sentences_are_true(question: Question, text: str) -> SegmentedReward:
    """Return the ground truth of a response with that of each sentence, 1 or 0, as a reward of `granularity: claim`."""
    scene = scene_of(question.id)
    rewards = []
    for sentence in sentences.split(text):
        parsed = claims(sentence)
        rewards.append((sentence, float(bool(parsed) and all(holds(scene, claim) for claim in parsed or ()))))
    reward = float(is_true(scene, question.text, text))
    return SegmentedReward(reward=reward, segments=sentence_segments(text, rewards, reward=reward))


def response_is_true(question: Question, text: str) -> bool:
    """Return the ground truth of a response to a question of the embedded world."""
    return is_true(scene_of(question.id), question.text, text)
