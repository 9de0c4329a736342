"""Vocabularies: words, plurals, places, and the messages for mistakes in a file."""

from pathlib import Path

import pytest

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.experts.vocabulary import Phrase, load_vocabulary, with_article
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES

COCO = load_vocabulary("coco")


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("teddy bear", "teddy bears"),
        ("person", "people"),
        ("baby", "babies"),
        ("toy", "toys"),
        ("tennis racket", "tennis rackets"),
        ("wine glass", "wine glasses"),
        ("knife", "knives"),
        ("sheep", "sheep"),
    ],
)
def test_plurals(noun: str, plural: str) -> None:
    assert COCO.plural(noun) == plural


def test_phrases_are_parsed() -> None:
    assert COCO.phrase("red white bus") == Phrase("bus", ("red", "white"), False)
    assert COCO.phrase("orange") == Phrase("orange", (), False)
    assert COCO.phrase("orange orange") == Phrase("orange", ("orange",), False)
    assert COCO.phrase("woman") == Phrase("person", (), True)
    assert COCO.phrase("red thing") == Phrase("", ("red",), False)
    assert COCO.phrase("unicorn") is None
    assert COCO.phrase("red") is None


def test_place_at_returns_the_smallest_place() -> None:
    assert COCO.place_at(0.1, 0.1) == "top left"
    assert load_vocabulary("shapes").place_at(0.5, 0.5) == "centre"


def test_coco_has_its_eighty_classes_and_the_world_its_words() -> None:
    assert len(COCO.nouns) == 80
    shapes = load_vocabulary("shapes")
    assert set(shapes.nouns) == set(SHAPES)
    assert set(shapes.attributes["colour"]) == set(COLOURS)


def test_the_article_fits_the_next_word() -> None:
    assert with_article("orange star") == "an orange star"
    assert with_article("red star") == "a red star"


def test_equal_vocabularies_have_equal_hashes() -> None:
    assert hash(COCO) == hash(COCO.model_copy(deep=True))
    assert load_vocabulary("shapes") != COCO


def test_an_unknown_name_lists_the_shipped_vocabularies() -> None:
    with pytest.raises(InputError, match=r"vocabulary: 'cocoa' cannot be read .* coco, shapes"):
        load_vocabulary("cocoa")


@pytest.mark.parametrize("text", ["nouns: 3", "nouns: {dog: []}\ncolours: {}", "{{"])
def test_a_malformed_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml.* is not a vocabulary"):
        load_vocabulary(str(path))


def test_a_users_own_vocabulary_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("nouns: {crane: [derrick]}")
    assert load_vocabulary(str(path)).phrase("crane") == Phrase("crane", (), False)
