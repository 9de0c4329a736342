"""Reading of benchmark files: rows of JSON, JSON Lines and Parquet files, their images, and stored answers."""

import csv
import gzip
import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError

_NUM_FRAMES = 32
"""Frames that represent a video, as in the official script of MM-RLHF-RewardBench."""

_SEPARATORS = {".tsv": "\t", ".csv": ","}
_MAX_FIELD = 1 << 30
"""Longest field of a table, in characters: images may be in base64."""
_NO_LIMITS = ImageLimits(max_bytes=sys.maxsize)
"""Limits of images are checked when they are opened."""

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON, JSON Lines, TSV, CSV (also `.gz`) or Parquet file. Raises InputError."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JSON, JSON Lines, TSV or Parquet file") from error
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    rows = _read_table(text, _SEPARATORS[suffix], path) if suffix in _SEPARATORS else _read_json(text, path)
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected objects, one per question")
    return list(rows)


def _read_json(text: str, path: Path) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            rows: list[Any] = json.loads(text)
            return rows
        # Not `splitlines`: JSON strings may hold separators such as U+2028, at which it would split.
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def _read_table(text: str, separator: str, path: Path) -> list[Any]:
    """Read a table with a header, as VLMEvalKit distributes its benchmarks."""
    csv.field_size_limit(_MAX_FIELD)
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}: no readable table: {error}") from error


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
        """Return the URIs of an image or a list of images: paths, URIs, bytes, base64, or `{"bytes", "path"}`."""
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
        if not images.is_data_url(text) and images.is_base64_image(text):
            try:
                return self._keep(images.decode_base64(text, _NO_LIMITS))
            except ImageError:
                # It is a path then, which does not exist; that is reported with the item.
                pass
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
