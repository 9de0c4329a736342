"""What a matcher makes of an image: the attributes of each box, and which phrases each window may show.

Always by comparison: an attribute against the others of its family on the same crop ("a red cup" / "a blue cup" / ...),
a phrase against all nouns with all attributes of the family and against nothing at all. Never by an absolute cosine.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from vlgenrm_ray.engines.contracts import Matcher
from vlgenrm_ray.experts.view import ANYTHING, Glance, windows
from vlgenrm_ray.experts.vocabulary import Phrase, Vocabulary, described
from vlgenrm_ray.records import Box, Claim, Detection
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

Seen = tuple["PIL.Image.Image", Sequence[Box]]
"""An image with its boxes, in its own pixels."""


class MatchingConfig(Settings):
    """What the matcher is asked."""

    attribute_margin: float = Field(default=0.3, ge=0, le=1)
    """An attribute is decided if its probability exceeds the runner-up's by so much."""
    crop_margin: float = Field(default=0.05, ge=0)
    """How much wider than its box a crop is, on each side, in widths of the box."""
    grids: tuple[int, ...] = (1, 2, 3)
    """A phrase is looked for in the n x n windows of each n; 1 is the whole image."""


def phrases_of(claims: Iterable[Claim]) -> tuple[str, ...]:
    """The noun phrases that claims are about."""
    return tuple(sorted({phrase for claim in claims for phrase in (claim.subject, claim.other) if phrase}))


def known_phrases(phrases: Sequence[str], vocabulary: Vocabulary, labels: Sequence[str]) -> tuple[str, ...]:
    """Those a detector can look for: `labels` are the nouns it knows, () if it knows any."""
    parts = ((phrase, vocabulary.phrase(phrase)) for phrase in phrases)
    return tuple(phrase for phrase, part in parts if part and (not labels or part.noun in ("", *labels)))


def nouns_of(phrases: Sequence[str], vocabulary: Vocabulary, labels: Sequence[str]) -> tuple[str, ...]:
    """The nouns to ask a detector for: all it knows, or if it knows any, those the phrases name ("thing" names all)."""
    if labels:
        return tuple(labels)
    parts = [vocabulary.phrase(phrase) for phrase in phrases]
    named = {part.noun for part in parts if part}
    return tuple(sorted(vocabulary.nouns if "" in named else named))


def sightings_of(
    seen: Sequence[Seen], matcher: Matcher, vocabulary: Vocabulary, config: MatchingConfig
) -> list[tuple[Detection, ...]]:
    """For each image its boxes, best first, with the attribute of each family; one call of the matcher per noun."""
    found: list[list[Detection]] = [[] for _ in seen]
    for noun in sorted({box.label for _, boxes in seen for box in boxes}):
        places = [(i, box) for i, (_, boxes) in enumerate(seen) for box in boxes if box.label == noun]
        crops = [_crop(seen[i][0], box, config.crop_margin) for i, box in places]
        for family in vocabulary.attributes.values():
            words = list(family)
            rows = matcher.match(crops, [described(f"{word} {noun}") for word in words])
            for (i, box), row in zip(places, rows, strict=True):
                word, score = _decided(words, row, config.attribute_margin)
                found[i].append(Detection(box=box, attribute=word, attribute_score=score))
        if not vocabulary.attributes:
            for i, box in places:
                found[i].append(Detection(box=box, attribute="", attribute_score=0.0))
    return [tuple(sorted(one, key=lambda s: -s.box.score)) for one in found]


def _decided(words: Sequence[str], scores: Sequence[float], margin: float) -> tuple[str, float]:
    first, second = sorted(scores, reverse=True)[:2] if len(scores) > 1 else (scores[0], 0.0)
    return (words[scores.index(first)] if first - second >= margin else ""), first


def _crop(image: "PIL.Image.Image", box: Box, margin: float) -> "PIL.Image.Image":
    wide, high = margin * (box.x1 - box.x0), margin * (box.y1 - box.y0)
    left, top = max(round(box.x0 - wide), 0), max(round(box.y0 - high), 0)
    right, bottom = min(round(box.x1 + wide), image.width), min(round(box.y1 + high), image.height)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def glances_of(
    images: "Sequence[PIL.Image.Image]",
    phrases: Sequence[Sequence[str]],
    matcher: Matcher,
    vocabulary: Vocabulary,
    config: MatchingConfig,
) -> list[tuple[Glance, ...]]:
    """For each image and each of its windows, how likely it shows each of the image's phrases, and anything at all."""
    known = [{p: part for p in some if (part := vocabulary.phrase(p))} for some in phrases]
    cuts = [list(windows(image.width, image.height, config.grids)) for image in images]
    rows: dict[tuple[int, int, str], Mapping[tuple[str, str], float]] = {}
    for family in ("", *vocabulary.attributes):
        asked = [i for i, parts in enumerate(known) if family in _families(parts.values(), vocabulary)]
        places = [(i, j) for i in asked for j in range(len(cuts[i]))]
        crops = [_crop(images[i], cuts[i][j], 0.0) for i, j in places]
        answers = _matched(crops, family, matcher, vocabulary) if crops else []
        rows |= {(i, j, family): row for (i, j), row in zip(places, answers, strict=True)}
    found: list[tuple[Glance, ...]] = []
    for i, parts in enumerate(known):
        families = _families(parts.values(), vocabulary)
        glances = []
        for j, window in enumerate(cuts[i] if parts else ()):
            here = {family: rows[i, j, family] for family in families}
            likely = {p: _likelihood(part, here, vocabulary) for p, part in parts.items()}
            # What the backgrounds left; of several families' answers the one that leaves most room for something.
            likely[ANYTHING] = max(sum(row.values()) for row in here.values())
            glances.append(Glance(window, likely))
        found.append(tuple(glances))
    return found


def _families(phrases: Iterable[Phrase], vocabulary: Vocabulary) -> set[str]:
    """The families of the phrases' attributes, "" for a phrase that has none."""
    return {vocabulary.family(word) if word else "" for phrase in phrases for word in phrase.attributes or ("",)}


def _matched(
    crops: "Sequence[PIL.Image.Image]", family: str, matcher: Matcher, vocabulary: Vocabulary
) -> list[dict[tuple[str, str], float]]:
    """For each crop the probability of each (attribute, noun) of a family, (``""``, noun) where the family is "".

    What the nouns leave of 1 fell to the backgrounds.
    """
    keys = [(word, noun) for word in (vocabulary.attributes[family] if family else ("",)) for noun in vocabulary.nouns]
    texts = [described(f"{word} {noun}".strip()) for word, noun in keys]
    return [dict(zip(keys, row, strict=False)) for row in matcher.match(crops, [*texts, *vocabulary.backgrounds])]


def _likelihood(phrase: Phrase, rows: Mapping[str, Mapping[tuple[str, str], float]], vocabulary: Vocabulary) -> float:
    """As likely as the phrase's least likely attribute with its noun; a general noun is as likely as all together."""
    likely = []
    for word in phrase.attributes or ("",):
        row = rows[vocabulary.family(word) if word else ""]
        nouns = [phrase.noun] if phrase.noun else list(vocabulary.nouns)
        likely.append(sum(row[word, noun] for noun in nouns))
    return min(likely)
