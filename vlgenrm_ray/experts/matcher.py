"""The matcher expert: attributes of detected objects, and phrases in windows of the image.

Both compare texts; absolute similarity is never used. An attribute competes with the others of its family on the same
crop ("a red cup" / "a blue cup" / ...). A phrase competes with every noun of the vocabulary, each with every attribute
of the phrase's family, and with the background texts ("nothing").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vlgenrm_ray.engines.contracts import Matcher
from vlgenrm_ray.engines.matchers import build_matcher
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.evidence import ANYTHING, WindowMatch, cut_windows
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask, MatchingConfig
from vlgenrm_ray.experts.vocabulary import Phrase, Vocabulary, load_vocabulary, with_article
from vlgenrm_ray.records import Box, Detection, WindowScore

if TYPE_CHECKING:
    import PIL.Image

BoxedImage = tuple["PIL.Image.Image", Sequence[Box]]
"""An image with detected boxes, in its own pixels."""
_CROP_MARGIN = 0.05
"""Margin added to each side of a box before it is cropped, in fractions of the box's width and height."""


class MatcherExpert:
    """Runs an image-text matcher on the crops of detected boxes and on the windows of the images."""

    def __init__(self, config: ExpertPipelineConfig, *, matcher: Matcher | None = None) -> None:
        """Load the matcher of `config`, unless one is given. Raises InputError if it cannot be loaded."""
        if matcher is None and config.matcher is None:
            raise ConfigError("matcher: there is none; set experts.matcher")
        self.matcher = matcher or build_matcher(config.matcher)  # type: ignore[arg-type]
        self._config = config.matching
        self._vocabulary = load_vocabulary(config.vocabulary)

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Add `detections`, `window_matches` and `window_scores`. See `Expert`."""
        images = [task.image() for task in tasks]
        boxed_images = [(image, task.boxes) for image, task in zip(images, tasks, strict=True)]
        phrases = [task.phrases for task in tasks]
        detections = match_attributes(boxed_images, self.matcher, self._vocabulary, self._config)
        windows = match_windows(images, phrases, self.matcher, self._vocabulary, self._config)
        nouns = set(self._vocabulary.nouns)
        return [
            _add_matches(task, of_task, windows_of_task, searched_all=nouns <= set(task.searched_nouns))
            for task, of_task, windows_of_task in zip(tasks, detections, windows, strict=True)
        ]


def _add_matches(
    task: ImageTask, detections: Sequence[Detection], windows: Sequence[WindowMatch], *, searched_all: bool
) -> ImageTask:
    """Scale boxes to the original image and add them to the task. A window is empty only if all nouns were searched."""
    boxes = [window.box.scaled(*task.scale) for window in windows]
    return replace(
        task,
        detections=tuple(replace(d, box=d.box.scaled(*task.scale)) for d in detections),
        window_matches=tuple(
            WindowMatch(box, {phrase: window.scores[phrase] for phrase in task.phrases})
            for box, window in zip(boxes, windows, strict=True)
        ),
        window_scores=tuple(
            WindowScore(box=box, anything=window.scores[ANYTHING] if searched_all else 1.0)
            for box, window in zip(boxes, windows, strict=True)
        ),
    )


def match_attributes(
    images: Sequence[BoxedImage], matcher: Matcher, vocabulary: Vocabulary, config: MatchingConfig
) -> list[tuple[Detection, ...]]:
    """Match the attributes of every family on every box, with one call of the matcher per noun and family.

    Returns:
        For each image its detections, best box first: one per box and family, or one per box if there are no families.
    """
    detections: list[list[Detection]] = [[] for _ in images]
    for noun in sorted({box.label for _, boxes in images for box in boxes}):
        indexed_boxes = [(i, box) for i, (_, boxes) in enumerate(images) for box in boxes if box.label == noun]
        crops = [_crop(images[i][0], box, _CROP_MARGIN) for i, box in indexed_boxes]
        for family in vocabulary.attributes.values():
            words = list(family)
            rows = matcher.match(crops, [with_article(f"{word} {noun}") for word in words])
            for (i, box), row in zip(indexed_boxes, rows, strict=True):
                word, score = _decide_attribute(words, row, config.attribute_margin)
                detections[i].append(Detection(box=box, attribute=word, attribute_score=score))
        if not vocabulary.attributes:
            for i, box in indexed_boxes:
                detections[i].append(Detection(box=box, attribute="", attribute_score=0.0))
    return [tuple(sorted(of_image, key=lambda d: -d.box.score)) for of_image in detections]


def _decide_attribute(words: Sequence[str], scores: Sequence[float], margin: float) -> tuple[str, float]:
    """Return the best word, or "" if the second best is within `margin`, and the best score."""
    first, second = sorted(scores, reverse=True)[:2] if len(scores) > 1 else (scores[0], 0.0)
    return (words[scores.index(first)] if first - second >= margin else ""), first


def _crop(image: "PIL.Image.Image", box: Box, margin: float) -> "PIL.Image.Image":
    dx, dy = margin * (box.x1 - box.x0), margin * (box.y1 - box.y0)
    left, top = max(round(box.x0 - dx), 0), max(round(box.y0 - dy), 0)
    right, bottom = min(round(box.x1 + dx), image.width), min(round(box.y1 + dy), image.height)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def match_windows(
    images: "Sequence[PIL.Image.Image]",
    phrases: Sequence[Sequence[str]],
    matcher: Matcher,
    vocabulary: Vocabulary,
    config: MatchingConfig,
) -> list[tuple[WindowMatch, ...]]:
    """Match each image's phrases, and `ANYTHING`, in each of its windows, with one call of the matcher per family.

    Args:
        images: Images, of any sizes.
        phrases: For each image its noun phrases. Phrases outside the vocabulary are ignored.
        matcher: Loaded matcher.
        vocabulary: Nouns, attributes and backgrounds that the phrases compete with.
        config: Margins and grids of windows.

    Returns:
        For each image its windows, row by row for each grid; () for an image without phrases.
    """
    parsed = [{p: part for p in of_image if (part := vocabulary.phrase(p))} for of_image in phrases]
    windows = [list(cut_windows(image.width, image.height, config.grids)) for image in images]
    # (image, window, family) -> probability of each (attribute, noun) of the family.
    rows: dict[tuple[int, int, str], Mapping[tuple[str, str], float]] = {}
    for family in ("", *vocabulary.attributes):
        in_family = [i for i, parts in enumerate(parsed) if family in _families(parts.values(), vocabulary)]
        keys = [(i, j) for i in in_family for j in range(len(windows[i]))]
        crops = [_crop(images[i], windows[i][j], 0.0) for i, j in keys]
        family_rows = _match_family(crops, family, matcher, vocabulary) if crops else []
        rows |= {(i, j, family): row for (i, j), row in zip(keys, family_rows, strict=True)}
    matches: list[tuple[WindowMatch, ...]] = []
    for i, parts in enumerate(parsed):
        families = _families(parts.values(), vocabulary)
        of_image = []
        for j, window in enumerate(windows[i] if parts else ()):
            window_rows = {family: rows[i, j, family] for family in families}
            scores = {p: _phrase_probability(part, window_rows, vocabulary) for p, part in parts.items()}
            # The probability that the backgrounds leave, by the family that leaves most.
            scores[ANYTHING] = max(sum(row.values()) for row in window_rows.values())
            of_image.append(WindowMatch(window, scores))
        matches.append(tuple(of_image))
    return matches


def _families(phrases: Iterable[Phrase], vocabulary: Vocabulary) -> set[str]:
    """Return the families of the phrases' attributes, with "" for phrases without attributes."""
    return {vocabulary.family(word) if word else "" for phrase in phrases for word in phrase.attributes or ("",)}


def _match_family(
    crops: "Sequence[PIL.Image.Image]", family: str, matcher: Matcher, vocabulary: Vocabulary
) -> list[dict[tuple[str, str], float]]:
    """Return for each crop the probability of each (attribute, noun) of a family; (``""``, noun) for family "".

    Each row sums to at most 1; the remainder is the probability of the background texts.
    """
    keys = [(word, noun) for word in (vocabulary.attributes[family] if family else ("",)) for noun in vocabulary.nouns]
    texts = [with_article(f"{word} {noun}".strip()) for word, noun in keys]
    return [dict(zip(keys, row, strict=False)) for row in matcher.match(crops, [*texts, *vocabulary.backgrounds])]


def _phrase_probability(
    phrase: Phrase, rows: Mapping[str, Mapping[tuple[str, str], float]], vocabulary: Vocabulary
) -> float:
    """Return the probability of the phrase's least likely attribute with its noun. A general noun sums over nouns."""
    probabilities = []
    for word in phrase.attributes or ("",):
        row = rows[vocabulary.family(word) if word else ""]
        nouns = [phrase.noun] if phrase.noun else list(vocabulary.nouns)
        probabilities.append(sum(row[word, noun] for noun in nouns))
    return min(probabilities)
