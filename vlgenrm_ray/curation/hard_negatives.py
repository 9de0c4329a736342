"""Hard negatives: absent objects that occur together with those of the image elsewhere in the data.

"A cup" for "a fork" on a laid table is a harder negative than "a giraffe". How often two nouns are detected together is
counted over the whole experts stage before pairs are built; the experts of each image still decide that the new object
is absent.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import StageFolder

if TYPE_CHECKING:
    import pyarrow as pa

_MIN_SCORE = 0.5
"""Detector score from which an object is counted."""


@dataclass(frozen=True)
class Cooccurrence:
    """Number of images in which two nouns are detected together."""

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(noun, other noun) in both orders -> images."""

    @classmethod
    def of_images(cls, nouns_of_images: Iterable[Collection[str]]) -> "Cooccurrence":
        """Count the pairs of nouns of some images."""
        pairs = Counter((a, b) for nouns in nouns_of_images for a in set(nouns) for b in set(nouns) if a != b)
        return cls(pairs)

    def num_together(self, nouns: Collection[str], other: str) -> int:
        """Return how often `other` occurs together with each of the nouns, summed."""
        return sum(self.pairs[noun, other] for noun in nouns)

    def shuffle(self, others: Sequence[str], nouns: Collection[str], rng: random.Random) -> list[str]:
        """Return `others` in a random order in which those that occur often with `nouns` tend to come first.

        The first is drawn with a probability proportional to 1 + `num_together`, then the second of the rest, and so on
        (Efraimidis and Spirakis, 2006).
        """
        weights = {other: 1 + self.num_together(nouns, other) for other in others}
        keys = {other: rng.random() ** (1 / weights[other]) for other in others}
        return sorted(others, key=lambda other: -keys[other])


def count_cooccurrence(folder: StageFolder) -> Cooccurrence:
    """Count which nouns are detected together in the images of a complete experts stage, on Ray."""
    pairs: Counter[tuple[str, str]] = Counter()
    for batch in flow.read_shards(folder, _CountShards(folder)).iter_batches(batch_size=None, batch_format="pyarrow"):
        nouns, others, counts = (batch.column(name).to_pylist() for name in ("noun", "other", "images"))
        for noun, other, count in zip(nouns, others, counts, strict=True):
            pairs[noun, other] += count
    return Cooccurrence(pairs)


@dataclass(frozen=True)
class _CountShards:
    folder: StageFolder

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        import pyarrow as pa

        for path in paths.column("path").to_pylist():
            pairs = count_shard(self.folder, Path(path)).pairs
            nouns, others = ([pair[side] for pair in pairs] for side in (0, 1))
            yield pa.table(
                {
                    "noun": pa.array(nouns, pa.string()),
                    "other": pa.array(others, pa.string()),
                    "images": pa.array(list(pairs.values()), pa.int64()),
                }
            )


def count_shard(folder: StageFolder, shard: Path) -> Cooccurrence:
    """Count which nouns are detected together in the images of one shard. Reads three columns.

    All responses about an image are in one unit, and so in one shard.
    """
    path = "detections.list.element.box."
    columns = ["response.question.image.sha256", f"{path}label", f"{path}score"]
    records = folder.read_records(shard, columns=columns)
    nouns_of_images: dict[str, set[str]] = {}
    for response, detections in zip(
        records.column("response").to_pylist(), records.column("detections").to_pylist(), strict=True
    ):
        image = response["question"]["image"]["sha256"]
        if image not in nouns_of_images:
            boxes = [detection["box"] for detection in detections]
            nouns_of_images[image] = {box["label"] for box in boxes if box["score"] >= _MIN_SCORE}
    return Cooccurrence.of_images(nouns_of_images.values())
