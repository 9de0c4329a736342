"""Closed vocabularies that claims are read with: nouns, attributes, places, relations. Data in `vocabularies/`."""

from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import Field, ValidationError

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.settings import Settings

_FOLDER = Path(__file__).parent / "vocabularies"


class ImageRegion(Settings):
    """A named part of the image."""

    region: tuple[float, float, float, float]
    """Left, top, right, bottom in fractions of the image's width and height."""
    synonyms: tuple[str, ...] = ()
    """Other names of the region."""


class Phrase(NamedTuple):
    """A parsed noun phrase."""

    noun: str
    """Canonical noun; "" for a general noun ("shape"), which every noun satisfies."""
    attributes: tuple[str, ...]
    """Canonical attributes, in the phrase's order."""
    narrower: bool
    """True if the word is narrower than the noun ("man" for `person`), so that a box of the noun does not prove it."""


class Vocabulary(Settings):
    """Words and their synonyms, in lower case; nouns in the singular."""

    nouns: dict[str, tuple[str, ...]]
    """Noun, as the detector labels it -> synonyms."""
    narrower: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Noun -> narrower words, which name only some of its objects (person -> man, woman)."""
    general: tuple[str, ...] = ()
    """Words for an object of any noun ("thing"). The first one is canonical."""
    plurals: dict[str, str] = Field(default_factory=dict)
    """Irregular plurals of single words (person -> people)."""
    attributes: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    """Family (colour) -> word -> synonyms. The words of a family exclude each other."""
    places: dict[str, ImageRegion] = Field(default_factory=dict)
    """Name of a place ("top left") -> its region."""
    relations: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Relation between two objects -> synonyms. A relation whose geometry `checking` does not know stays unknown."""
    backgrounds: tuple[str, ...] = ("nothing",)
    """Texts that compete with the nouns in the matcher: they win where the image shows none of the nouns."""
    exclusive_places: bool = False
    """True if a place holds at most one object, so that another object there contradicts a claim."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.fingerprint())

    def plural(self, noun: str) -> str:
        """Return the plural of a noun phrase: of its last word, irregular or by the rules of spelling."""
        head, _, last = noun.rpartition(" ")
        if last in self.plurals:
            plural = self.plurals[last]
        elif last.endswith("y") and last[-2:-1] not in "aeiou":
            plural = f"{last[:-1]}ies"
        elif last.endswith(("s", "x", "z", "ch", "sh")):
            plural = f"{last}es"
        else:
            plural = f"{last}s"
        return f"{head} {plural}".strip()

    def family(self, attribute: str) -> str:
        """Return the family of a canonical attribute. Raises KeyError if there is none."""
        return self._family[attribute]

    @cached_property
    def _family(self) -> dict[str, str]:
        return {word: family for family, words in self.attributes.items() for word in words}

    @cached_property
    def _nouns(self) -> dict[str, tuple[str, bool]]:
        """Word -> (noun, is narrower)."""
        entries = {word: (noun, True) for noun, words in self.narrower.items() for word in words}
        entries |= dict.fromkeys(self.general, ("", False))
        return entries | {noun: (noun, False) for noun in self.nouns}

    def phrase(self, subject: str) -> Phrase | None:
        """Parse a noun phrase ("red circle"). Return None if its noun is not in the vocabulary."""
        words = subject.split()
        attributes: list[str] = []
        while words and words[0] in self._family and " ".join(words) not in self._nouns:
            attributes.append(words.pop(0))
        entry = self._nouns.get(" ".join(words))
        return Phrase(entry[0], tuple(attributes), entry[1]) if entry else None

    def place_at(self, x: float, y: float) -> str:
        """Return the smallest place that contains the point (x, y), in fractions of the image; "" if none does."""
        containing = [
            ((x1 - x0) * (y1 - y0), name)
            for name, place in self.places.items()
            for x0, y0, x1, y1 in [place.region]
            if x0 <= x < x1 and y0 <= y < y1
        ]
        return min(containing)[1] if containing else ""


def with_article(phrase: str) -> str:
    """Return a noun phrase with its indefinite article, as captions and responses write it."""
    return f"{'an' if phrase[:1] in 'aeiou' else 'a'} {phrase}"


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """Load a vocabulary by name (`shapes`, `coco`) or by the path of a YAML file. Cached.

    Raises:
        InputError: The file cannot be read or is not a vocabulary.
    """
    shipped = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    path = _FOLDER / f"{name}.yaml" if name in shipped else Path(name)
    try:
        return Vocabulary.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise InputError(
            f"vocabulary: {name!r} cannot be read ({error.strerror}); "
            f"name one of {', '.join(shipped)}, or the path of a YAML file like those in {_FOLDER}"
        ) from error
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"vocabulary: {name!r} is not a vocabulary: {error}") from error
