"""Claim extraction: kinds, spans, negation and hedges, in the language of the world and in everyday English."""

import json
import random

import pytest
from golden.write_claims_readings import GOLDEN, reading_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.claims import GRAMMAR_VERSION, VocabularyExtractor, extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes import truth
from vlgenrm_ray.shapes.language import NUMBERS, RELATIONS, count_clause, object_phrase, object_phrases, sentence
from vlgenrm_ray.shapes.questions import KINDS, describe, draw_question, existence
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, draw_scene

SHAPES_WORDS = load_vocabulary("shapes")
COCO = load_vocabulary("coco")
Key = tuple[str, str, str, str, bool, bool]


def key_of(claim: Claim) -> Key:
    return (claim.kind.value, claim.subject, claim.value, claim.other, claim.negated, claim.hedged)


def claims_in(text: str, words: str = "coco") -> list[Key]:
    return [key_of(claim) for claim in extract_claims(text, load_vocabulary(words))]


def key(
    kind: str, subject: str, value: str = "", other: str = "", *, negated: bool = False, hedged: bool = False
) -> Key:
    return (kind, subject, value, other, negated, hedged)


@pytest.mark.parametrize("seed", range(40))
def test_reference_answers_of_the_world_have_the_claims_of_the_world(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng)
    for kind in KINDS:
        if question := draw_question(scene, kind, rng):
            expected = truth.claims(question.reference)
            assert expected is not None
            assert claims_in(question.reference, "shapes") == [key_of(claim) for claim in expected]
            assert claims_in(question.text, "shapes") == [], "a question claims nothing"


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
def test_sentences_of_the_world_have_the_claims_of_the_world(text: str) -> None:
    expected = truth.claims(text)
    assert expected is not None
    assert claims_in(text, "shapes") == [key_of(claim) for claim in expected]


@given(st.lists(st.tuples(names, st.integers(0, 8)), min_size=1, max_size=5))
def test_objects_listed_by_a_critique_are_separate_claims(things: list[tuple[str, int]]) -> None:
    text = ", ".join(object_phrase(name, cell) for name, cell in things)
    expected = []
    for name, cell in things:
        expected += [key("existence", name), key("spatial", name, CELLS[cell])]
    assert claims_in(text, "shapes") == expected


def test_absent_objects_listed_by_a_critique_are_negated_claims() -> None:
    assert claims_in("no red circle", "shapes") == [key("existence", "red circle", negated=True)]
    assert claims_in("no star", "shapes") == [key("existence", "star", negated=True)]
    assert claims_in(object_phrases([], "no circles"), "shapes") == [key("count", "circle", "0")]
    assert claims_in("nothing at the centre", "shapes") == [key("spatial", "shape", "centre", negated=True)]
    assert claims_in("no red circle, a blue square at the centre", "shapes") == [
        key("existence", "red circle", negated=True),
        key("existence", "blue square"),
        key("spatial", "blue square", "centre"),
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
def test_any_order_of_words_gives_valid_claims(text: str) -> None:
    for claim in extract_claims(text, COCO):
        assert claim.text == text[claim.start : claim.end]
        assert COCO.phrase(claim.subject) is not None
        assert claim.kind is not ClaimKind.COUNT or claim.value.isdigit()


@given(st.sampled_from(sorted(COCO.nouns)), st.integers(2, 12))
def test_plurals_are_the_same_noun(noun: str, number: int) -> None:
    assert claims_in(f"There are {number} {COCO.plural(noun)}.") == [key("count", noun, str(number))]
    assert claims_in(f"There are no {COCO.plural(noun)}.") == [key("count", noun, "0")]


@given(st.sampled_from([(noun, synonym) for noun, synonyms in COCO.nouns.items() for synonym in synonyms]))
def test_synonyms_are_the_same_noun(pair: tuple[str, str]) -> None:
    noun, synonym = pair
    assert claims_in(f"There is a {synonym} on the left.") == claims_in(f"There is a {noun} on the left.")


@given(statements, st.sampled_from([str.upper, str.lower, str.title]))
def test_case_does_not_matter(text: str, change: object) -> None:
    assert callable(change)
    assert claims_in(change(text), "shapes") == claims_in(text, "shapes")


CASES = {
    "A dog and a cat.": [key("existence", "dog"), key("existence", "cat")],
    "3 dogs and a cat": [key("count", "dog", "3"), key("existence", "cat")],
    "The star-shaped car is red.": [key("attribute", "car", "red")],
    "The car is not red.": [key("attribute", "car", "red", negated=True)],
    "The bus is red and white.": [
        key("attribute", "bus", "red", hedged=True),
        key("attribute", "bus", "white", hedged=True),
    ],
    "The dog is to the left of the red car.": [key("spatial", "dog", "left of", "red car")],
    "The dog isn't above the cat.": [key("spatial", "dog", "above", "cat", negated=True)],
    "There is an orange on the table.": [key("existence", "orange"), key("spatial", "orange", "on", "table")],
    "The orange car is on the left.": [key("spatial", "orange car", "left")],
    "On the left side of the image, there is a bus.": [key("spatial", "bus", "left"), key("existence", "bus")],
    "I don't see any dogs.": [key("existence", "dog", negated=True)],
    "A street without cars": [key("existence", "car", negated=True)],
    "There are no dogs and cats.": [key("count", "dog", "0"), key("count", "cat", "0")],
    "A man stands on the right.": [key("existence", "man")],
    "The traffic light is green.": [key("attribute", "traffic light", "green")],
    "A cell phone, but no laptop.": [key("existence", "cell phone"), key("existence", "laptop", negated=True)],
    "There is one dog at the top left.": [
        key("existence", "dog"),
        key("spatial", "dog", "top left"),
    ],
    "What a view! The sky is clear.": [],
    "Is that a dog? No.": [],
    "Nothing to add.": [],
}


@pytest.mark.parametrize("text", CASES)
def test_everyday_english_about_photographs(text: str) -> None:
    assert claims_in(text) == CASES[text]


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
def test_indefinite_statements_are_hedged(text: str) -> None:
    claims = extract_claims(text, COCO)
    assert claims
    assert all(claim.hedged for claim in claims)


def test_an_object_after_a_negated_unknown_verb_is_hedged() -> None:
    assert claims_in("The man is not wearing a tie.") == [key("existence", "man"), key("existence", "tie", hedged=True)]


def test_a_negated_identity_does_not_negate_existence() -> None:
    assert key("existence", "star", negated=True) not in claims_in("The circle is not a star.", "shapes")


@pytest.mark.parametrize(
    ("question", "text", "claims"),
    [
        ("What is missing?", "A dog.", []),
        ("What is missing?", "It is a dog.", []),
        ("Which object is not in the image?", "A dog", []),
        ("What would be there if it were night?", "A dog.", []),
        ("What isn't there?", "Dogs and cats.", []),
        ("Which of these is false?", "There is a dog.", []),
        ("What is missing?", "There is a dog on the left, but no cat.", ["dog", "dog", "cat"]),
        ("What is in the image?", "A dog.", ["dog"]),
        ("Is there a dog?", "Yes, there is a dog.", ["dog"]),
        ("Describe the image.", "A dog sits on a bench.", ["dog", "bench"]),
        ("", "A dog.", ["dog"]),
    ],
)
def test_an_answer_is_read_with_its_question(question: str, text: str, claims: list[str]) -> None:
    subjects = [claim.subject for claim in extract_claims(text, COCO, question) if not claim.hedged]
    assert set(subjects) == set(claims)


def test_a_change_of_any_reading_has_another_version_of_the_grammar() -> None:
    """Stages compare the version, so that a run does not continue with claims of another grammar.

    If this fails, raise `GRAMMAR_VERSION` and write the golden file: `python tests/golden/write_claims_readings.py`.
    """
    golden = json.loads(GOLDEN.read_text())
    changed = [text for text, hash in golden["readings"].items() if hash != reading_hash(text)]
    assert not changed or golden["version"] != GRAMMAR_VERSION
    assert golden["version"] == GRAMMAR_VERSION, "the golden file is of another version"
    assert len(golden["readings"]) > 300


@pytest.mark.parametrize(
    "correction",
    ["Sorry, I meant a cat.", "Actually, it's a cat.", "Edit: no dog.", "Opposite day!", "I cannot view images. Oops."],
)
def test_a_correction_takes_back_what_was_said(correction: str) -> None:
    for text in (f"There is a dog. {correction}", f"{correction} There is a dog."):
        assert all(claim.hedged for claim in extract_claims(text, load_vocabulary("coco"))), text


def test_the_extractor_equals_the_function_with_its_vocabulary() -> None:
    text = "There is a red circle at the top left."
    assert VocabularyExtractor(SHAPES_WORDS).extract(text) == extract_claims(text, SHAPES_WORDS)
    assert [c.text for c in extract_claims(text, SHAPES_WORDS)] == ["a red circle", "a red circle at the top left"]
