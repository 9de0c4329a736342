"""What is scored: images, questions and responses, of the embedded world or of one's own."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError


@dataclass(frozen=True, slots=True)
class Piece:
    """One response to score."""

    image: bytes
    """Encoded."""
    question: str
    response: str


def of_shapes(count: int, *, seed: int) -> list[Piece]:
    """True and false answers in turn, two to a picture."""
    from vlgenrm_ray.shapes.pairs import gold_pairs

    with tempfile.TemporaryDirectory() as folder:
        pairs = gold_pairs(Path(folder), seed=seed, split="test", count=(count + 1) // 2)
        found = [
            Piece(Path(pair.question.image.uri).read_bytes(), pair.question.text, text)
            for pair in pairs
            for text in (pair.chosen, pair.rejected)
        ]
    return found[:count]


def of_file(path: Path, count: int) -> list[Piece]:
    """Rows of JSON Lines with `image` (a path, relative to the file's folder), `question`, and `response` (or `chosen`
    and `rejected`). Raises InputError where a row cannot be read, or there are fewer than `count` responses.
    """
    found = list(islice(_rows(path), count))
    if len(found) < count:
        raise InputError(f"{path}: {len(found)} responses; {count} are needed, or lower --items")
    return found


def _rows(path: Path) -> Iterator[Piece]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            image = (path.parent / row["image"]).read_bytes()
            for response in _responses(row):
                yield Piece(image, row["question"], response)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: {type(error).__name__}: {error}") from error


def _responses(row: dict[str, Any]) -> Sequence[str]:
    return [row["response"]] if "response" in row else [row["chosen"], row["rejected"]]


def half_repeated(pieces: Sequence[Piece], block: int) -> list[Piece]:
    """Every piece twice: `block` of them, the same again, and so on, as a trainer scores a batch once more.

    A block longer than what is asked at once keeps a repetition from joining its first, which is still under way.
    """
    starts = range(0, len(pieces), block)
    return [piece for start in starts for _ in range(2) for piece in pieces[start : start + block]]
