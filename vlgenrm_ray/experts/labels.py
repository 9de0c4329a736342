"""Labelled images to calibrate experts with: boxes in COCO or YOLO form, or yes/no questions in POPE form.

COCO   a JSON file with `images`, `annotations` and `categories`; `file_name` is in `images` or beside the file
YOLO   a folder with `labels/*.txt` ("class x y w h", relative) and `images/`; `data.yaml` names the classes, else they
       are the nouns of the vocabulary in its order
POPE   JSON Lines with `image`, `text` and `label` ("Is there a dog in the image?", yes or no)
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlgenrm_ray.data.images import ImageError, ImageLimits, decode, fetch
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_POPE_QUESTION = re.compile(r"is there (?:an?|any|some) (.+?)(?: in (?:the|this) (?:image|picture|photo))?\s*\??", re.I)


def open_photo(path: Path) -> "PIL.Image.Image":
    """Return the RGB pixels of a labelled image, decoded as everywhere. Raises InputError if it cannot be read."""
    try:
        return decode(fetch(str(path), ImageLimits()), ImageLimits(), str(path))
    except ImageError as error:
        raise InputError(f"labelled image {error.detail}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPhoto:
    """An image with its true objects."""

    path: Path
    boxes: tuple[Box, ...] = ()
    """Every object of the labelled nouns, in pixels of the image; () if there are none, or only yes/no labels."""
    crowds: frozenset[str] = frozenset()
    """Nouns with more objects than boxes."""
    nouns: frozenset[str] = frozenset()
    """Nouns that the labels cover: one without a box is absent."""
    answers: Mapping[str, bool] | None = None
    """Noun -> whether it is in the image, for labels that are questions."""

    @property
    def present(self) -> frozenset[str]:
        """Nouns in the image."""
        if self.answers is not None:
            return frozenset(noun for noun, is_there in self.answers.items() if is_there)
        return frozenset(box.label for box in self.boxes) | self.crowds


def read_labels(path: Path, vocabulary: Vocabulary, images: Path | None = None) -> list[LabelledPhoto]:
    """Read labelled images in any of the forms above.

    Args:
        path: File or folder with the labels.
        vocabulary: Vocabulary of the experts. Labels of other nouns are left out.
        images: Folder of the images, if it is not beside the labels.

    Returns:
        The images whose file exists, sorted by path.

    Raises:
        InputError: The labels cannot be read, or not one image of theirs exists.
    """
    if not path.exists():
        raise InputError(f"--truth {path}: there is no such file or folder")
    try:
        photos = list(_read(path, vocabulary, images))
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(
            f"--truth {path}: {type(error).__name__}: {error}; give COCO JSON, a folder of YOLO labels, or questions "
            "as JSON Lines with image, text and label"
        ) from error
    existing = [photo for photo in photos if photo.path.is_file()]
    if not existing:
        missing = f"{photos[0].path} is missing" if photos else "there are no labels"
        raise InputError(f"--truth {path}: {missing}; name the folder of the images with --images")
    return sorted(existing, key=lambda photo: photo.path)


def _read(path: Path, vocabulary: Vocabulary, images: Path | None) -> Iterator[LabelledPhoto]:
    if path.is_dir():
        yield from _read_yolo(path, vocabulary, images)
        return
    text = path.read_text()
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict) and "annotations" in content:
        yield from _read_coco(content, vocabulary, images or path.parent)
    else:
        yield from _read_questions(
            content if isinstance(content, list) else [content], vocabulary, images or path.parent
        )


def _read_yolo(path: Path, vocabulary: Vocabulary, images: Path | None) -> Iterator[LabelledPhoto]:
    folder = path / "labels" if (path / "labels").is_dir() else path
    images = images or folder.parent / "images"
    names = _class_names(path, vocabulary)
    nouns = frozenset(names.values()) & frozenset(vocabulary.nouns)
    for photo in sorted(p for p in images.rglob("*") if p.suffix.lower() in _SUFFIXES):
        labels = (folder / photo.relative_to(images)).with_suffix(".txt")
        boxes = []
        width, height = open_photo(photo).size
        # An image without objects has an empty file, or none.
        for line in labels.read_text().splitlines() if labels.is_file() else ():
            number, x, y, w, h = (float(value) for value in line.split()[:5])
            noun = names[int(number)]
            if noun in nouns:
                corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
                boxes.append(_box(noun, corners))
        yield LabelledPhoto(path=photo, boxes=tuple(boxes), nouns=nouns)


def _class_names(path: Path, vocabulary: Vocabulary) -> Mapping[int, str]:
    for file in (path / "data.yaml", path.parent / "data.yaml"):
        if file.is_file():
            names = yaml.safe_load(file.read_text())["names"]
            return names if isinstance(names, dict) else dict(enumerate(names))
    return dict(enumerate(vocabulary.nouns))


def _read_coco(content: dict[str, Any], vocabulary: Vocabulary, images: Path) -> Iterator[LabelledPhoto]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    nouns = frozenset(names.values()) & frozenset(vocabulary.nouns)
    boxes: dict[Any, list[Box]] = defaultdict(list)
    crowds: dict[Any, set[str]] = defaultdict(set)
    for annotation in content["annotations"]:
        noun, (x, y, w, h) = names[annotation["category_id"]], annotation["bbox"]
        if noun in nouns and annotation.get("iscrowd"):
            crowds[annotation["image_id"]].add(noun)
        elif noun in nouns:
            boxes[annotation["image_id"]].append(_box(noun, (x, y, x + w, y + h)))
    for image in content["images"]:
        yield LabelledPhoto(
            path=images / image["file_name"],
            boxes=tuple(boxes[image["id"]]),
            crowds=frozenset(crowds[image["id"]]),
            nouns=nouns,
        )


def _read_questions(rows: Sequence[Any], vocabulary: Vocabulary, images: Path) -> Iterator[LabelledPhoto]:
    answers: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        match = _POPE_QUESTION.fullmatch(" ".join(row.get("text", row.get("question", "")).split()))
        phrase = vocabulary.phrase(match[1].lower()) if match else None
        if phrase is not None and phrase.noun and not phrase.attributes and not phrase.narrower:
            answers[row["image"]][phrase.noun] = str(row["label"]).strip().lower() == "yes"
    for name, of_image in answers.items():
        yield LabelledPhoto(path=images / name, nouns=frozenset(of_image), answers=of_image)


def _box(noun: str, corners: Sequence[float]) -> Box:
    x0, y0, x1, y1 = corners
    return Box(label=noun, score=1.0, x0=x0, y0=y0, x1=x1, y1=y1)
