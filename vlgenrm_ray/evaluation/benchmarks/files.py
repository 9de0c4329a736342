"""Reading of benchmark files: rows of JSON, JSON Lines and Parquet files, their images, and stored answers."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.data import addresses
from vlgenrm_ray.errors import InputError

_NUM_FRAMES = 32
"""Frames that represent a video, as in the official script of MM-RLHF-RewardBench."""

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines, JSON or Parquet file. Raises InputError."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JSON, JSON Lines or Parquet file") from error
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            # Not `splitlines`: JSON strings may hold separators such as U+2028, at which it would split.
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected objects, one per question")
    return list(rows)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: no readable Parquet file ({error}); download it again") from error
    if not rows:
        raise InputError(f"{path}: has no row")
    return rows


def value_of(row: Row, names: Sequence[str], path: Path) -> Any:
    """Return the value of the first of `names` that the row has. Raises InputError if it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise InputError(f"{path}: a row has none of {', '.join(names)}; its keys are {', '.join(map(str, row))}")


def text_of(row: Row, names: Sequence[str], path: Path) -> str:
    """Return `value_of` as a text without image placeholders."""
    return str(value_of(row, names, path)).replace("<image>", "").strip()


def binary_labels(labels: Sequence[Any], yes: Any, no: Any, path: Path) -> list[bool]:
    """Return True for `yes` and False for `no`. Raises InputError for any other label."""
    for label in labels:
        if label not in (yes, no):
            raise InputError(f"{path}: label {label!r}; the labels of this benchmark are {yes!r} and {no!r}")
    return [label == yes for label in labels]


def unique_ids(ids: Iterable[str]) -> list[str]:
    """Make repeated ids unique: the second of them gets the suffix `#2`, the third `#3`, and so on."""
    counts: dict[str, int] = defaultdict(int)
    unique = []
    for id in ids:
        counts[id] += 1
        unique.append(id if counts[id] == 1 else f"{id}#{counts[id]}")
    return unique


def match_answers(rows: Iterable[Row], keys: Sequence[Hashable], key: Any, path: Path) -> list[Row | None]:
    """Return the answer row of each item, None where there is none.

    Where several items have the same key, they are matched in order: the k-th row of a key answers the k-th item of it.

    Args:
        rows: Rows of the answers file; those with another key are ignored.
        keys: Key of each item.
        key: Computes the key of a row.
        path: The answers file, for messages.

    Raises:
        InputError: A key has more answers than items.
    """
    by_key: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[key(row)].append(row)
    num_items: dict[Hashable, int] = defaultdict(int)
    matched: list[Row | None] = []
    for item_key in keys:
        answers = by_key.get(item_key, [])
        matched.append(answers[num_items[item_key]] if num_items[item_key] < len(answers) else None)
        num_items[item_key] += 1
    for item_key, num in num_items.items():
        if len(by_key.get(item_key, ())) > num:
            name = "/".join(map(str, item_key)) if isinstance(item_key, tuple) else str(item_key)
            raise InputError(
                f"{path}: question {name} is answered {len(by_key[item_key])} times, but asked {num} times; "
                "keep one answer per question"
            )
    return matched


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResolver:
    """Turns the images of benchmark rows into paths and URIs."""

    root: str
    """Folder or URI that relative paths refer to."""
    store: Path | None = None
    """Folder that receives images which rows hold as bytes. None: such images are left out, for stored answers."""

    def resolve(self, value: Any) -> tuple[str, ...]:
        """Return the URIs of an image or a list of images: paths, URIs, bytes, or `{"bytes", "path"}`."""
        if value is None or value == "":
            return ()
        if isinstance(value, (list, tuple)):
            return tuple(uri for one in value for uri in self.resolve(one))
        if isinstance(value, Mapping):
            data = value.get("bytes")
            return self.resolve(data if data is not None else value.get("path"))
        if isinstance(value, bytes):
            return self._keep(value)
        text = str(value)
        return (text if addresses.scheme(text) or text.startswith("/") else f"{self.root.rstrip('/')}/{text}",)

    def frames(self, folder: Any) -> tuple[str, ...]:
        """Return the URIs of 32 frames of a video, evenly spaced; the folder's own URI if it has no file."""
        (uri,) = self.resolve(folder)
        files = sorted(path for path in Path(uri).glob("*") if path.is_file())
        if not files:
            return (uri,)
        step = (len(files) - 1) / (_NUM_FRAMES - 1)
        return tuple(str(files[int(step * i)]) for i in range(_NUM_FRAMES))

    def _keep(self, data: bytes) -> tuple[str, ...]:
        if self.store is None:
            return ()
        path = self.store / f"{hashlib.sha256(data).hexdigest()}.img"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return (str(path),)
