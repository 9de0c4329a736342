"""Decontamination: finds images of benchmarks among the images to train on, by perceptual hash and by question.

Two images are the same if their perceptual hashes (pHash of ImageHash, 64 bits) differ in at most `max_distance` bits:
other sizes, encodings and small crops count as the same. With the same question a larger distance is enough.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import PIL.Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_IMAGE_FIELDS = ("image", "image_path", "img_path", "image_file", "filename", "file_name")
_QUESTION_FIELDS = ("question", "query", "text", "prompt")
_SAME_QUESTION_DISTANCE = 12
"""Distance up to which images with the same question are the same."""

_HASHING_THREADS = 8
"""Threads that decode images; decoding runs outside of Python's lock."""
BenchmarkImage = tuple[str | bytes, str]
"""Path, URI or bytes of an image, and the question about it, "" if there is none."""

_log = logging.getLogger(__name__)


class DecontaminationConfig(Settings):
    """Benchmarks whose images are not trained on."""

    benchmarks: tuple[str, ...] | None = None
    """Image folders, and data files (JSON, JSON Lines, Parquet) with images and questions. Image paths in them refer to
    the file's folder. None: the recipe's own `benchmarks`. []: nothing is compared."""
    max_distance: int = Field(default=4, ge=0, le=16)
    """Largest number of differing bits, of 64, between the hashes of two images that count as the same."""


@dataclass(frozen=True)
class BenchmarkIndex:
    """Perceptual hashes of benchmark images, and the questions about them."""

    hashes: npt.NDArray[np.uint64]
    """Hash of each image (N,)."""
    names: tuple[str, ...]
    """Path of each image, for messages."""
    questions: tuple[frozenset[str], ...]
    """Normalised questions about each image."""
    max_distance: int

    def find(self, image: "PIL.Image.Image", questions: Sequence[str]) -> str:
        """Return the name of the benchmark image that an image is, or "" if there is none.

        Args:
            image: Image to train on.
            questions: Questions about it.
        """
        if not len(self.hashes):
            return ""
        distances = np.bitwise_count(self.hashes ^ perceptual_hash(image))
        nearest = int(np.argmin(distances))
        if distances[nearest] <= self.max_distance:
            return self.names[nearest]
        asked = {normalise(question) for question in questions}
        for i in np.flatnonzero(distances <= _SAME_QUESTION_DISTANCE):
            if asked & self.questions[int(i)]:
                return self.names[int(i)]
        return ""

    def fingerprint(self) -> str:
        """Return a hash of the content."""
        return digest([self.hashes.tolist(), [sorted(texts) for texts in self.questions], self.max_distance])


def perceptual_hash(image: "PIL.Image.Image") -> np.uint64:
    """Return the pHash of an image: 64 bits that change little if the image is scaled, encoded or cropped a little."""
    import imagehash

    bits = imagehash.phash(image).hash.flatten()
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes()))


def normalise(question: str) -> str:
    """Return a question in lower case with single spaces, without image placeholders and punctuation at its end."""
    return " ".join(question.replace("<image>", " ").lower().split()).strip(" .?!:")


def build_index(
    config: DecontaminationConfig,
    limits: ImageLimits,
    recipe_benchmarks: Mapping[str, Iterable[BenchmarkImage]] | None = None,
) -> BenchmarkIndex | None:
    """Hash the images of the benchmarks; return None if there is none to compare with.

    Images of data files that do not exist, or that cannot be decoded, are reported once per file with their number.

    Args:
        config: Benchmarks to compare with.
        limits: Limits of their images.
        recipe_benchmarks: Name of each of the recipe's own benchmarks -> its images, used unless `config.benchmarks`
            states others.

    Raises:
        InputError: A benchmark cannot be read, or none of its images exists.
    """
    if config.benchmarks is None:
        # A benchmark of texts alone has no image to compare with.
        benchmarks = {name: list(shown) for name, shown in (recipe_benchmarks or {}).items()}
        sources: Mapping[str, Iterable[BenchmarkImage]] = {name: shown for name, shown in benchmarks.items() if shown}
    else:
        sources = {name: _read_benchmark(Path(name)) for name in config.benchmarks}
    return _hash_images(sources, limits, config.max_distance) if sources else None


def _hash_images(
    sources: Mapping[str, Iterable[BenchmarkImage]], limits: ImageLimits, max_distance: int
) -> BenchmarkIndex:
    hashes: dict[str, np.uint64 | None] = {}
    questions: dict[str, set[str]] = {}

    def hash_image(reference: str | bytes) -> np.uint64 | None:
        try:
            data = reference if isinstance(reference, bytes) else images.fetch(reference, limits)
            return perceptual_hash(images.decode(data, limits))
        except (ImageError, OSError):
            return None

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        for name, shown in sources.items():
            keyed = [(r if isinstance(r, str) else f"{name}: {digest(r.hex())}", r, question) for r, question in shown]
            new = {key: reference for key, reference, _ in keyed if key not in hashes}
            hashes.update(zip(new, threads.map(hash_image, new.values()), strict=True))
            num_missing = sum(hashes[key] is None for key, _, _ in keyed)
            if num_missing == len(keyed):
                raise InputError(
                    f"experts.decontamination.benchmarks: {name}: none of its {num_missing} images can be read; put "
                    "the images where the file's paths lead, name the folder of the images, or set "
                    "experts.decontamination.benchmarks to [], which compares nothing"
                )
            if num_missing:
                _log.warning("%s: %d images cannot be read and are not compared", name, num_missing)
            for key, _, question in keyed:
                questions.setdefault(key, set()).add(normalise(question))
    entries = {key: (hash, questions[key]) for key, hash in hashes.items() if hash is not None}
    return BenchmarkIndex(
        hashes=np.array([hash for hash, _ in entries.values()], dtype=np.uint64),
        names=tuple(entries),
        questions=tuple(frozenset(texts - {""}) for _, texts in entries.values()),
        max_distance=max_distance,
    )


def _read_benchmark(path: Path) -> Iterator[BenchmarkImage]:
    """Yield path or bytes of each image with the question about it, "" if there is none."""
    if path.is_dir():
        for image in sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES):
            yield str(image), ""
        return
    try:
        rows = _read_rows(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"experts.decontamination.benchmarks: {path} cannot be read ({error}); give a folder of images, or a file "
            "of JSON, JSON Lines or Parquet"
        ) from error
    for row in rows:
        reference = next((row[field] for field in _IMAGE_FIELDS if row.get(field)), None)
        question = next((row[field] for field in _QUESTION_FIELDS if isinstance(row.get(field), str)), "")
        if isinstance(reference, dict):
            reference = reference.get("bytes") or reference.get("path")
        for one in reference if isinstance(reference, list) else [reference]:
            if isinstance(one, bytes):
                yield one, question
            elif isinstance(one, str):
                yield str(path.parent / one), question


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    text = path.read_text()
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = content if isinstance(content, list) else [content]
    return [row for row in rows if isinstance(row, dict)]
