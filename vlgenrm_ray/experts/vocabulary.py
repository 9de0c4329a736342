"""The closed vocabulary that claims are read with: nouns, attributes, places, relations; data in `vocabularies/`."""

from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import Field, ValidationError

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.settings import Settings

_FOLDER = Path(__file__).parent / "vocabularies"


class Place(Settings):
    """A part of the image that has a name."""

    region: tuple[float, float, float, float]
    """Left, top, right, bottom as fractions of the image's width and height."""
    synonyms: tuple[str, ...] = ()


class Phrase(NamedTuple):
    """A claim's subject, taken apart."""

    noun: str
    """Canonical noun; "" for a general noun ("shape"), which any noun satisfies."""
    attributes: tuple[str, ...]
    narrower: bool
    """The word means less than the noun (a "man" among the persons): a box of the noun does not prove it."""


class Vocabulary(Settings):
    """Words with their synonyms. All lower case; nouns in the singular."""

    nouns: dict[str, tuple[str, ...]]
    """Noun, as the detector calls it -> synonyms."""
    narrower: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Noun -> words for some of its things only (person -> man, woman)."""
    general: tuple[str, ...] = ()
    """Words for a thing of any noun; the first is the canonical one."""
    plurals: dict[str, str] = Field(default_factory=dict)
    """Irregular plurals, word by word (person -> people)."""
    attributes: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    """Family (colour) -> word -> synonyms. Words of one family exclude each other."""
    places: dict[str, Place] = Field(default_factory=dict)
    relations: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Relation of two things -> synonyms. `checking` knows the geometry of some, the others stay unknown."""
    backgrounds: tuple[str, ...] = ("nothing",)
    """Texts a matcher prefers where none of the nouns is."""
    exclusive_places: bool = False
    """No two things can be at one place, so another thing there contradicts a claim."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.fingerprint())

    def plural(self, noun: str) -> str:
        """Plural of a noun phrase: its last word's, irregular or by the rules of spelling."""
        head, _, last = noun.rpartition(" ")
        if last in self.plurals:
            many = self.plurals[last]
        elif last.endswith("y") and last[-2:-1] not in "aeiou":
            many = f"{last[:-1]}ies"
        elif last.endswith(("s", "x", "z", "ch", "sh")):
            many = f"{last}es"
        else:
            many = f"{last}s"
        return f"{head} {many}".strip()

    def family(self, attribute: str) -> str:
        """The family a canonical attribute belongs to. Raises KeyError."""
        return self._family[attribute]

    @cached_property
    def _family(self) -> dict[str, str]:
        return {word: family for family, words in self.attributes.items() for word in words}

    @cached_property
    def _nouns(self) -> dict[str, tuple[str, bool]]:
        known = {word: (noun, True) for noun, words in self.narrower.items() for word in words}
        known |= dict.fromkeys(self.general, ("", False))
        return known | {noun: (noun, False) for noun in self.nouns}

    def phrase(self, subject: str) -> Phrase | None:
        """Take a claim's subject ("red circle") apart; None if its noun is not of this vocabulary."""
        words = subject.split()
        attributes: list[str] = []
        while words and words[0] in self._family and " ".join(words) not in self._nouns:
            attributes.append(words.pop(0))
        known = self._nouns.get(" ".join(words))
        return Phrase(known[0], tuple(attributes), known[1]) if known else None

    def place_at(self, x: float, y: float) -> str:
        """The smallest place that holds the point (x, y), in fractions of the image; "" if none does."""
        holding = [
            ((x1 - x0) * (y1 - y0), name)
            for name, place in self.places.items()
            for x0, y0, x1, y1 in [place.region]
            if x0 <= x < x1 and y0 <= y < y1
        ]
        return min(holding)[1] if holding else ""


def described(phrase: str) -> str:
    """A noun phrase with its indefinite article, as captions and responses write it."""
    return f"{'an' if phrase[:1] in 'aeiou' else 'a'} {phrase}"


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """A vocabulary by name (`shapes`, `coco`) or by path of a YAML file. Raises InputError."""
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
