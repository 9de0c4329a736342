"""A row of a source, read but not yet believed: what the pool probes before it becomes a `Question`."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One row. Either `problem` says what is wrong with it, or text and one of the two images are there."""

    id: str
    """Names the row, unique in the source: `file:line` (1-based), or the question's id where the source makes it."""
    name: str = ""
    """Id of the question: the row's own, or derived from its content. "" if there is a problem."""
    first: str = ""
    """The row that had the same question id before; "" if this is the first."""
    problem: str = ""
    image_uri: str | None = None
    image_bytes: bytes | None = None
    text: str = ""
    kind: str = ""
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None


def name_hash(name: str) -> int:
    """64 bits that stand for a question id while duplicates are sought: a million ids fit in 8 MB of the driver.

    Two different ids out of a million get the same bits with a chance of 3 in 100 million.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
