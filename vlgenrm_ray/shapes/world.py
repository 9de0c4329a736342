"""The embedded worlds as data sets: questions with their images on disk, all recoverable from their ids."""

import hashlib
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from vlgenrm_ray import plugins
from vlgenrm_ray.judge import sentences
from vlgenrm_ray.records import Claim, ImageRef, Question
from vlgenrm_ray.rewards.reward import SegmentedReward, sentence_segments

BASIC = "shapes"
HARD = "shapes-hard"
WORLDS = {
    BASIC: "vlgenrm_ray.shapes.basic:WORLD",
    HARD: "vlgenrm_ray.shapes.hard.world:WORLD",
}
"""Name of a world, which is its source in a recipe -> `World`."""


class WorldQuestion(Protocol):
    """A question about a scene, with its true answer."""

    @property
    def kind(self) -> str:
        """Kind of question: describe, count, ..."""

    @property
    def text(self) -> str:
        """The question."""

    @property
    def reference(self) -> str:
        """Its true answer."""


SceneT = TypeVar("SceneT")
QuestionT = TypeVar("QuestionT", bound=WorldQuestion)


@dataclass(frozen=True, kw_only=True)
class World(Generic[SceneT, QuestionT]):
    """An embedded world: how its items are drawn from (seed, split, index), rendered, and compared with the truth."""

    name: str
    splits: tuple[str, ...]
    kinds: tuple[str, ...]
    """Kinds of question."""
    draw_item: Callable[[int, str, int], tuple[SceneT, QuestionT]]
    """(seed, split, index) -> a scene and a question about it. Equal arguments give equal items."""
    corrupt_answer: Callable[[SceneT, QuestionT, random.Random], str]
    """Changes one fact of the true answer, so that it is false."""
    render: Callable[[SceneT], Image.Image]
    claim_is_true: Callable[[SceneT, Claim], bool]
    response_is_true: Callable[[SceneT, str, str], bool]
    """(scene, question, response) -> whether the response answers the question and states only what is true."""
    sentence_is_true: Callable[[SceneT, str], bool]
    """(scene, sentence) -> True if the sentence is in the world's language and states only what is true."""
    prior_answer: Callable[[SceneT, QuestionT], str | None] = lambda scene, question: None
    """The answer that the world's language prior suggests, if it is false of the scene; None otherwise."""
    item_is_compositional: Callable[[str, int], bool] = lambda split, index: False
    """(split, index) -> whether the item shows combinations that never occur in the train split."""


def load_world(name: str) -> World[Any, Any]:
    """Return a world by its name. Raises ValueError for an unknown one."""
    if name not in WORLDS:
        raise ValueError(f"no embedded world '{name}'; choose from {', '.join(WORLDS)}")
    world: World[Any, Any] = plugins.load(name, WORLDS, "world")
    return world


def rng_of(seed: int, split: str, index: int, use: str) -> random.Random:
    """Return the random generator of one item (seed, split, index) for one use ("scene", "question", "wrong")."""
    return random.Random(f"{seed}/{split}/{index}/{use}")


def questions(
    folder: Path, *, seed: int, split: str, count: int, start: int = 0, world: str = BASIC
) -> Iterator[Question]:
    """Generate questions `start` to `start + count - 1` of a world; kinds alternate.

    The images are written to `folder/<sha256>.png`. Ids are `<world>-<split>-<seed>-<index>-<kind>`. Equal arguments
    give equal ids, texts and images.

    Raises:
        ValueError: There is no such world, or it has no such split.
    """
    drawn_world = load_world(world)
    if split not in drawn_world.splits:
        raise ValueError(f"world '{world}' has no split '{split}'; choose from {', '.join(drawn_world.splits)}")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        scene, drawn = drawn_world.draw_item(seed, split, index)
        yield Question(
            id=f"{world}-{split}-{seed}-{index:06d}-{drawn.kind}",
            image=_store(drawn_world.render(scene), folder),
            text=drawn.text,
            source=world,
            kind=drawn.kind,
            reference=drawn.reference,
        )


def _store(image: Image.Image, folder: Path) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = buffer.getvalue()
    name = hashlib.sha256(data).hexdigest()
    path = folder / f"{name}.png"
    if not path.exists():
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_bytes(data)
        partial.rename(path)
    return ImageRef(uri=str(path), sha256=name, width=image.width, height=image.height)


@dataclass(frozen=True, slots=True)
class ItemAddress:
    """The parts of an id that determine its item."""

    world: str
    split: str
    seed: int
    index: int


def address_of(id: str) -> ItemAddress:
    """Parse a question's id, or any id that extends one. Raises ValueError for a foreign id."""
    name, *parts = id.split("/")[0].rsplit("-", 4)
    if name not in WORLDS or len(parts) != 4 or parts[0] not in load_world(name).splits:
        raise ValueError(f"not an id of an embedded world: {id!r}")
    return ItemAddress(name, parts[0], int(parts[1]), int(parts[2]))


def item_of(id: str) -> tuple[Any, Any]:
    """Redraw scene and question of an id. Raises ValueError for a foreign id.

    For measuring only: the training loop sees images.
    """
    address = address_of(id)
    scene, question = load_world(address.world).draw_item(address.seed, address.split, address.index)
    return scene, question


def scene_of(id: str) -> Any:
    """Redraw the scene of a question's id, or of any id that extends it. Raises ValueError for a foreign id."""
    return item_of(id)[0]


def is_compositional(id: str) -> bool:
    """Return whether an item shows combinations that never occur in the train split, by any id that extends its own."""
    address = address_of(id)
    return load_world(address.world).item_is_compositional(address.split, address.index)


def claim_is_true(question: Question, claim: Claim) -> bool:
    """Return the ground truth of one claim about a question's image."""
    return load_world(address_of(question.id).world).claim_is_true(scene_of(question.id), claim)


def sentences_are_true(question: Question, text: str) -> SegmentedReward:
    """Return the ground truth of a response with that of each sentence, 1 or 0, as a reward of `granularity: claim`."""
    world, scene = load_world(address_of(question.id).world), scene_of(question.id)
    rewards = [(sentence, float(world.sentence_is_true(scene, sentence))) for sentence in sentences.split(text)]
    reward = float(world.response_is_true(scene, question.text, text))
    return SegmentedReward(reward=reward, segments=sentence_segments(text, rewards, reward=reward))


def response_is_true(question: Question, text: str) -> bool:
    """Return the ground truth of a response to a question of an embedded world."""
    world = load_world(address_of(question.id).world)
    return world.response_is_true(scene_of(question.id), question.text, text)
