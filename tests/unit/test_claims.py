"""Claims are read from text: what is said, of what, where in the text, denied or hedged."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.claims import VocabularyExtractor, extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes import truth
from vlgenrm_ray.shapes.language import NUMBERS, RELATIONS, count_clause, object_phrase, object_phrases, sentence
from vlgenrm_ray.shapes.questions import KINDS, describe, draw_question, existence
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, draw_scene

SHAPES_WORDS = load_vocabulary("shapes")
COCO = load_vocabulary("coco")
Meaning = tuple[str, str, str, str, bool, bool]


def claim_key(claim: Claim) -> Meaning:
    return (claim.kind.value, claim.subject, claim.value, claim.other, claim.negated, claim.hedged)


def said(text: str, words: str = "coco") -> list[Meaning]:
    return [claim_key(claim) for claim in extract_claims(text, load_vocabulary(words))]


def plain(
    kind: str, subject: str, value: str = "", other: str = "", *, no: bool = False, perhaps: bool = False
) -> Meaning:
    return (kind, subject, value, other, no, perhaps)


@pytest.mark.parametrize("seed", range(40))
def test_every_reference_answer_of_the_world_is_read_as_the_world_means_it(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    for kind in KINDS:
        if asked := draw_question(scene, kind, rng):
            meant = truth.claims(asked.reference)
            assert meant is not None
            assert said(asked.reference, "shapes") == [claim_key(claim) for claim in meant]
            assert said(asked.text, "shapes") == [], "a question claims nothing"


names = st.builds("{} {}".format, st.sampled_from(COLOURS), st.sampled_from(SHAPES))
nouns = st.one_of(names, st.sampled_from(SHAPES), st.builds("{} shape".format, st.sampled_from(COLOURS)))
statements = st.one_of(
    st.builds(lambda things: describe(things), st.lists(st.tuples(names, st.integers(0, 8)), min_size=1, max_size=4)),
    st.builds(existence, names, st.booleans()),
    st.builds(lambda noun, n: sentence(count_clause(noun, n)), nouns, st.integers(0, len(NUMBERS) - 1)),
    st.builds("The {} is {}.".format, st.sampled_from(SHAPES), st.sampled_from(COLOURS)),
    st.builds("The {} is {} the {}.".format, names, st.sampled_from(RELATIONS), names),
)


@given(statements)
def test_every_sentence_of_the_world_is_read_as_the_world_means_it(text: str) -> None:
    meant = truth.claims(text)
    assert meant is not None
    assert said(text, "shapes") == [claim_key(claim) for claim in meant]


@given(st.lists(st.tuples(names, st.integers(0, 8)), min_size=1, max_size=5))
def test_the_image_part_of_a_critique_is_read_thing_by_thing(things: list[tuple[str, int]]) -> None:
    text = ", ".join(object_phrase(name, cell) for name, cell in things)
    expected = []
    for name, cell in things:
        expected += [plain("existence", name), plain("spatial", name, CELLS[cell])]
    assert said(text, "shapes") == expected


def test_the_image_part_of_a_critique_may_say_what_is_not_there() -> None:
    assert said("no red circle", "shapes") == [plain("existence", "red circle", no=True)]
    assert said("no star", "shapes") == [plain("existence", "star", no=True)]
    assert said(object_phrases([], "no circles"), "shapes") == [plain("count", "circle", "0")]
    assert said("nothing at the centre", "shapes") == [plain("spatial", "shape", "centre", no=True)]
    assert said("no red circle, a blue square at the centre", "shapes") == [
        plain("existence", "red circle", no=True),
        plain("existence", "blue square"),
        plain("spatial", "blue square", "centre"),
    ]


@given(st.text(max_size=200))
def test_spans_lie_inside_any_text(text: str) -> None:
    for claim in extract_claims(text, COCO):
        assert 0 <= claim.start < claim.end <= len(text)
        assert claim.text == text[claim.start : claim.end]


WORDS = (
    "a the no not two red orange dog dogs man is are left of to in on top at centre and , . ? perhaps "
    "there nothing sheep traffic light people one three isn't see without but 3"
)
word_soup = st.lists(st.sampled_from(WORDS.split()), max_size=25).map(" ".join)


@settings(max_examples=150)
@given(word_soup)
def test_any_order_of_words_is_read_without_error_and_with_exact_spans(text: str) -> None:
    for claim in extract_claims(text, COCO):
        assert claim.text == text[claim.start : claim.end]
        assert COCO.phrase(claim.subject) is not None
        assert claim.kind is not ClaimKind.COUNT or claim.value.isdigit()


@given(st.sampled_from(sorted(COCO.nouns)), st.integers(2, 12))
def test_plurals_are_the_same_noun(noun: str, number: int) -> None:
    assert said(f"There are {number} {COCO.plural(noun)}.") == [plain("count", noun, str(number))]
    assert said(f"There are no {COCO.plural(noun)}.") == [plain("count", noun, "0")]


@given(st.sampled_from([(noun, synonym) for noun, synonyms in COCO.nouns.items() for synonym in synonyms]))
def test_synonyms_are_the_same_noun(pair: tuple[str, str]) -> None:
    noun, synonym = pair
    assert said(f"There is a {synonym} on the left.") == said(f"There is a {noun} on the left.")


@given(statements, st.sampled_from([str.upper, str.lower, str.title]))
def test_case_does_not_matter(text: str, change: object) -> None:
    assert callable(change)
    assert said(change(text), "shapes") == said(text, "shapes")


CASES = {
    "A dog and a cat.": [plain("existence", "dog"), plain("existence", "cat")],
    "3 dogs and a cat": [plain("count", "dog", "3"), plain("existence", "cat")],
    "The star-shaped car is red.": [plain("attribute", "car", "red")],
    "The car is not red.": [plain("attribute", "car", "red", no=True)],
    "The bus is red and white.": [plain("attribute", "bus", "red"), plain("attribute", "bus", "white")],
    "The dog is to the left of the red car.": [plain("spatial", "dog", "left of", "red car")],
    "The dog isn't above the cat.": [plain("spatial", "dog", "above", "cat", no=True)],
    "There is an orange on the table.": [plain("existence", "orange"), plain("spatial", "orange", "on", "table")],
    "The orange car is on the left.": [plain("spatial", "orange car", "left")],
    "On the left side of the image, there is a bus.": [plain("spatial", "bus", "left"), plain("existence", "bus")],
    "I don't see any dogs.": [plain("existence", "dog", no=True)],
    "A street without cars": [plain("existence", "car", no=True)],
    "There are no dogs and cats.": [plain("count", "dog", "0"), plain("count", "cat", "0")],
    "A man stands on the right.": [plain("existence", "man")],
    "The traffic light is green.": [plain("attribute", "traffic light", "green")],
    "A cell phone, but no laptop.": [plain("existence", "cell phone"), plain("existence", "laptop", no=True)],
    "There is one dog at the top left.": [
        plain("existence", "dog"),
        plain("spatial", "dog", "top left"),
    ],
    "What a view! The sky is clear.": [],
    "Is that a dog? No.": [],
    "Nothing to add.": [],
}


@pytest.mark.parametrize("text", CASES)
def test_plain_english_about_photographs(text: str) -> None:
    assert said(text) == CASES[text]


@pytest.mark.parametrize(
    "text",
    [
        "Perhaps there is a dog.",
        "There might be two dogs.",
        "It seems that the car is red.",
        "There are at least two dogs.",
        "There is a dog or a cat.",
        "two large dogs",
        "The two dogs are brown.",
    ],
)
def test_what_cannot_be_pinned_down_is_hedged(text: str) -> None:
    found = extract_claims(text, COCO)
    assert found
    assert all(claim.hedged for claim in found)


def test_a_not_that_belongs_to_an_unknown_verb_leaves_what_follows_open() -> None:
    assert said("The man is not wearing a tie.") == [plain("existence", "man"), plain("existence", "tie", perhaps=True)]


def test_saying_what_a_thing_is_not_denies_nothing_else() -> None:
    assert plain("existence", "star", no=True) not in said("The circle is not a star.", "shapes")


def test_the_extractor_is_the_function_with_its_vocabulary() -> None:
    text = "There is a red circle at the top left."
    assert VocabularyExtractor(SHAPES_WORDS).extract(text) == extract_claims(text, SHAPES_WORDS)
    assert [c.text for c in extract_claims(text, SHAPES_WORDS)] == ["a red circle", "a red circle at the top left"]
