"""Responses that a bench sends to be scored: drawn from the embedded world, or read from a file."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError


@dataclass(frozen=True, slots=True)
class BenchItem:
    """One response to score."""

    image: bytes
    """Encoded image file."""
    question: str
    response: str


BenchPair = tuple[BenchItem, BenchItem]
"""A right and a wrong response to the same question about the same image."""


def draw_shapes_items(count: int, *, seed: int) -> list[BenchItem]:
    """Draw items of the embedded world: a true and a false response per image, in turn."""
    return [item for pair in draw_shapes_pairs((count + 1) // 2, seed=seed) for item in pair][:count]


def draw_shapes_pairs(count: int, *, seed: int) -> list[BenchPair]:
    """Draw pairs of the embedded world's test split."""
    from vlgenrm_ray.shapes.pairs import gold_pairs

    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for pair in gold_pairs(Path(folder), seed=seed, split="test", count=count):
            right = BenchItem(Path(pair.question.image.uri).read_bytes(), pair.question.text, pair.chosen)
            pairs.append((right, replace(right, response=pair.rejected)))
    return pairs


def read_items(path: Path, count: int) -> list[BenchItem]:
    """Read the first `count` items of a JSON Lines file.

    A row has `image` (a path relative to the file's folder), `question`, and `response` or `chosen` and `rejected`.

    Raises:
        InputError: A row cannot be read, or the file has fewer than `count` responses.
    """
    items = list(islice(_parse_rows(path), count))
    if len(items) < count:
        raise InputError(f"{path}: {len(items)} responses; {count} are needed, or lower --items")
    return items


def read_pairs(path: Path, count: int) -> list[BenchPair]:
    """Read the first `count` pairs of a JSON Lines file (see `read_items`), from its rows with `chosen` and `rejected`.

    Raises:
        InputError: A row cannot be read, or the file has fewer than `count` pairs.
    """
    items = list(islice(_parse_rows(path, pairs_only=True), 2 * count))
    if len(items) < 2 * count:
        raise InputError(
            f"{path}: {len(items) // 2} pairs of chosen and rejected; {count} are needed, or lower --pairs"
        )
    return list(zip(items[::2], items[1::2], strict=True))


def _parse_rows(path: Path, *, pairs_only: bool = False) -> Iterator[BenchItem]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if pairs_only and "rejected" not in row:
                continue
            image = (path.parent / row["image"]).read_bytes()
            for response in _responses(row):
                yield BenchItem(image, row["question"], response)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: {type(error).__name__}: {error}") from error


def _responses(row: dict[str, Any]) -> Sequence[str]:
    return [row["chosen"], row["rejected"]] if "rejected" in row else [row["response"]]


def repeat_blocks(items: Sequence[BenchItem], block: int) -> list[BenchItem]:
    """Repeat each block of `block` items once, right after it, like a trainer that scores a batch twice.

    With a block longer than the concurrency, a repetition is sent after its first request has been answered, so it
    meets the cache rather than a request in flight.
    """
    starts = range(0, len(items), block)
    return [item for start in starts for _ in range(2) for item in items[start : start + block]]
