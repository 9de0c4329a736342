"""The grammar hedges what it cannot place: a corpus with right readings, and properties of changed sentences."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.claims import extract_claims, lexicon_of
from vlgenrm_ray.experts.lexicon import WordKind, english
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes.language import RELATIONS
from vlgenrm_ray.shapes.questions import existence
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES

DATA = Path(__file__).parents[1] / "data"
CORPUS: list[dict[str, Any]] = yaml.safe_load((DATA / "claims_corpus.yaml").read_text())
FRAMES: dict[str, list[str]] = yaml.safe_load((DATA / "denying_frames.yaml").read_text())
MAY = [
    pytest.param(group["vocabulary"], text, set(group["may"]), id=text)
    for group in CORPUS
    if "may" in group
    for text in group["texts"]
]
MUST = [
    pytest.param(group["vocabulary"], text, set(claims), id=text)
    for group in CORPUS
    if "may" not in group
    for text, claims in group["texts"].items()
]
CAPTIONS = [
    text
    for group in CORPUS
    if group["vocabulary"] == "coco" and "may" not in group
    for text, claims in group["texts"].items()
    if claims
]
"""Plain captions of photographs."""


def notation(claim: Claim) -> str:
    """Return a claim as the corpus writes it."""
    negation = "not " if claim.negated else ""
    if claim.kind is ClaimKind.EXISTENCE:
        return f"{'no ' if claim.negated else ''}{claim.subject}"
    if claim.kind is ClaimKind.COUNT:
        return f"{negation}{claim.value} x {claim.subject}"
    if claim.kind is ClaimKind.ATTRIBUTE:
        return f"{claim.subject} is {negation}{claim.value}"
    if claim.other:
        return f"{claim.subject} {negation}{claim.value} {claim.other}"
    return f"{claim.subject} {negation}at {claim.value}"


def reading(text: str, vocabulary: str = "shapes") -> set[str]:
    """Return the claims that a text is read to make, without the hedged ones."""
    return {notation(claim) for claim in extract_claims(text, load_vocabulary(vocabulary)) if not claim.hedged}


# -- the corpus --------------------------------------------------------------------------------------------------------


def test_the_corpus_has_at_least_three_hundred_sentences_and_both_vocabularies() -> None:
    assert len(MAY) + len(MUST) >= 300
    assert {group["vocabulary"] for group in CORPUS} == {"shapes", "coco"}


@pytest.mark.parametrize(("vocabulary", "text", "claims"), MAY)
def test_nothing_else_is_read(vocabulary: str, text: str, claims: set[str]) -> None:
    assert reading(text, vocabulary) <= claims


@pytest.mark.parametrize(("vocabulary", "text", "claims"), MUST)
def test_plain_statements_are_not_hedged(vocabulary: str, text: str, claims: set[str]) -> None:
    assert reading(text, vocabulary) == claims


# -- sentences in frames -----------------------------------------------------------------------------------------------

names = st.builds("{} {}".format, st.sampled_from(COLOURS), st.sampled_from(SHAPES))
phrases = names.map(lambda name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
clauses = st.one_of(
    st.builds("there is {}".format, phrases),
    st.builds("there is {} at the {}".format, phrases, st.sampled_from(CELLS)),
    st.builds("there are {} {}s".format, st.sampled_from(["no", "two", "three", "4"]), names),
    st.builds("there is no {}".format, names),
    st.builds("the {} is {}".format, st.sampled_from(SHAPES), st.sampled_from(COLOURS)),
    st.builds("the {} is not {}".format, st.sampled_from(SHAPES), st.sampled_from(COLOURS)),
    st.builds("the {} is {} the {}".format, names, st.sampled_from(RELATIONS), names),
    st.builds("the image shows {} and a {}".format, phrases, st.sampled_from(SHAPES)),
)


def as_clause(caption: str) -> str:
    """Return the first sentence of a caption as a part of a longer sentence."""
    first = caption.split(".")[0]
    return first[0].lower() + first[1:]


@settings(max_examples=500)
@given(st.sampled_from(FRAMES["clause_frames"]), clauses)
def test_no_statement_survives_a_frame_that_denies_or_doubts_it(frame: str, clause: str) -> None:
    stated = reading(f"{clause}.")
    assert stated
    for text in (clause, clause.capitalize()):
        assert not reading(frame.format(text)) & stated


@pytest.mark.parametrize("frame", FRAMES["clause_frames"])
def test_no_caption_survives_a_frame_that_denies_or_doubts_it(frame: str) -> None:
    for caption in CAPTIONS:
        clause = as_clause(caption)
        assert not reading(frame.format(clause), "coco") & reading(f"{clause}.", "coco")


@settings(max_examples=400)
@given(st.sampled_from(FRAMES["phrase_frames"]), names, st.sampled_from(["a", "the", "any", "two", "some", ""]))
def test_no_object_survives_a_frame_that_denies_or_doubts_it(frame: str, name: str, determiner: str) -> None:
    noun = name if determiner in ("a", "the") else f"{name}s"
    text = frame.format(f"{determiner} {noun}".strip())
    for variant in (text, text[0].upper() + text[1:], text.upper(), text.replace("'", "\u2019")):
        assert not reading(variant) & {name, f"2 x {name}"}


# -- words put in ------------------------------------------------------------------------------------------------------

new_words = st.text("abcdefghijklmnopqrstuvwxyz\u00e4\u00df\u043a\u0442\u732b", min_size=2, max_size=9)


def insertions(text: str, word: str) -> Sequence[str]:
    """Return a text with a word at each place between its words."""
    words = text.split()
    return [" ".join([*words[:i], word, *words[i:]]) for i in range(len(words) + 1)]


def is_unknown(word: str, vocabulary: str) -> bool:
    return [entry.kind for entry in lexicon_of(load_vocabulary(vocabulary)).read(word)] == [WordKind.OTHER]


@settings(max_examples=150)
@given(clauses, new_words)
def test_an_unknown_word_anywhere_hedges_a_statement(clause: str, word: str) -> None:
    assume(is_unknown(word, "shapes"))
    for text in insertions(clause, word):
        assert reading(f"{text}.") == set()


@settings(max_examples=100)
@given(st.sampled_from(CAPTIONS), new_words)
def test_an_unknown_word_anywhere_hedges_a_caption(caption: str, word: str) -> None:
    assume(is_unknown(word, "coco"))
    for text in insertions(as_clause(caption), word):
        assert reading(f"{text}.", "coco") == set()


@settings(max_examples=150)
@given(clauses, st.sampled_from(FRAMES["words"]))
def test_no_single_claim_survives_a_word_of_denial_anywhere(clause: str, word: str) -> None:
    stated = reading(f"{clause}.")
    assume(len(stated) == 1)
    for text in insertions(clause, word):
        assert not reading(f"{text}.") & stated, text


@given(
    clauses,
    st.sampled_from(['"{}"', "'{}'", "\u201c{}\u201d", "\u2018{}\u2019", "\u00ab{}\u00bb", "`{}`", "~~{}~~"]),
    st.data(),
)
def test_a_statement_is_hedged_if_a_part_is_quoted(clause: str, quotation: str, data: st.DataObject) -> None:
    words = clause.split()
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    quoted = quotation.format(" ".join(words[start:end]))
    assert reading(" ".join([*words[:start], quoted, *words[end:]])) == set()


def test_sentences_within_a_quotation_are_hedged() -> None:
    assert reading('He said: "Look. There is a red circle. Nice." There is a blue square.') == {"blue square"}
    assert reading("He said: \u2018Look. There is a red circle. Nice.\u2019") == set()
    assert reading('There is a star. He said: "Look. There is a red circle.') == {"star"}


# -- numbers -----------------------------------------------------------------------------------------------------------

ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
OTHER_NUMERALS = (
    *("hundred", "thousand", "million", "dozen", "score", "point", "half", "quarter", "thirds", "couple", "pair"),
    *("2", "5", "17", "100", "0.5", "1,000", "2nd"),
)
JOINTS = (
    " ",
    "-",
    " and ",
    "\u2013",
    ".",
    ",",
    ", ",
    "/",
    " / ",
    " to ",
    " or ",
    " point ",
    " a ",
    " of the ",
    " plus ",
)


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([*ONES, *TENS, *TEENS, *OTHER_NUMERALS]), min_size=2, max_size=4), st.sampled_from(JOINTS)
)
def test_numerals_are_read_whole_or_hedged(parts: list[str], joint: str) -> None:
    is_compound = len(parts) == 2 and parts[0] in TENS and parts[1] in ONES and joint in " -"
    expected = {f"{20 + 10 * TENS.index(parts[0]) + 1 + ONES.index(parts[1])} x circle"} if is_compound else set()
    counts = {claim for claim in reading(f"There are {joint.join(parts)} circles.") if " x " in claim}
    assert counts == expected


@given(st.integers(0, 10**30))
def test_numbers_in_digits_are_read_whole_or_hedged(number: int) -> None:
    assert reading(f"There are {number} circles.") <= {f"{number} x circle"}
    assert reading(f"There are {number:,} circles.") <= {f"{number} x circle"}
    assert reading(f"There are {number}.5 circles.") == set()


def test_numbers_below_one_hundred_are_read_in_words() -> None:
    assert reading("There are twenty-two circles and thirty squares.") == {"22 x circle", "30 x square"}
    assert reading("There are nineteen circles.") == {"19 x circle"}


@given(st.text(max_size=12))
def test_a_count_is_always_a_number(text: str) -> None:
    """Digits of other scripts and superscripts are no number that the checks could compare."""
    for claim in extract_claims(f"There are {text} circles.", load_vocabulary("shapes")):
        assert claim.kind is not ClaimKind.COUNT or (claim.value.isascii() and claim.value.isdigit())


# -- texts of several sentences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("The ambience is serene. There is a red circle.", {"red circle"}),
        ("There is a red circle. The ambience is serene.", {"red circle"}),
        ("Is there a star? No. There is a red circle.", {"red circle"}),
        ("What is missing? A star. There is a red circle.", {"red circle"}),
        ("Objects:\n- a red circle\n- an eerie star\n- a square", {"shape", "red circle", "square"}),
        ("The image lacks:\n- a star\n\nThere is a red circle.", set()),
        ("The image lacks:\n- a star\n\nIt is small.\n\nThere is a red circle.", {"red circle"}),
        ("# Eerie things\n- a star\n- a square\n# Description\nThere is a red circle.", set()),
        ("There is a red circle, e.g. in the picture. There is a star.", {"star"}),
        ("(There is a red circle. Arguably.) There is a star.", {"star"}),
        ("There is a red circle. Arguably.", set()),
        ("There is a red circle. As the story goes.", set()),
        ("There is a red circle. It is bogus. There is a star.", set()),
        ("There is a red circle. It is eerie. There is a star.", {"star"}),
        ("There is a red circle. No, there is not. There is a star.", {"star"}),
        ("There is a red circle. Not!", set()),
        ("There is a red circle. Or is there?", set()),
        ("There is a red circle. It isn't there.", set()),
        ("There is a red circle. Is there a star? No.", {"red circle"}),
    ],
)
def test_a_sentence_is_read_under_those_that_it_stands_under(text: str, claims: set[str]) -> None:
    assert reading(text) == claims


@pytest.mark.parametrize("disclaimer", english()["disclaimers"])
def test_a_text_that_takes_itself_back_is_hedged(disclaimer: str) -> None:
    assert reading(f"There is a red circle. {disclaimer.capitalize()}.") == set()
    assert reading(f"{disclaimer.upper()}! There is a red circle.".replace("'", "\u2019")) == set()


@given(st.lists(st.builds(existence, names, st.booleans()), min_size=1, max_size=4))
def test_plain_answers_are_never_hedged(answers: list[str]) -> None:
    assert all(reading(answer) for answer in answers)
    expected = set.union(*(reading(answer) for answer in answers))
    assert reading(" ".join(answers)) == reading("\n".join(answers)) == expected
    assert reading("\n".join(f"- {answer}" for answer in answers)) == expected


@pytest.mark.parametrize(
    "part", ["no dog, ", "every dog and ", '"a dog" ', ". ", "a\n", "2 ", "- not a dog\n", "red and "]
)
def test_a_long_repetition_is_read_in_time(part: str) -> None:
    """A policy may repeat itself up to the limit of a text. The limit here is a wide one, for loaded machines."""
    started = time.monotonic()
    extract_claims((part * 64_000)[:64_000], load_vocabulary("coco"))
    assert time.monotonic() - started < 20


NO_WORDS = {"disclaimers", "titles", "abbreviations", "absence_questions", "falsehood_questions", "denials"}
"""Lists of `english.yaml` that are not words of sentences."""


# -- the word lists ----------------------------------------------------------------------------------------------------


def test_no_word_of_denial_is_listed_as_harmless() -> None:
    """Only "around" is both: a hedge before a number, a preposition elsewhere."""
    risky_kinds = ("not", "without", "none", "nothing", "was", "any", "hedge", "question")
    risky = {word for kind in risky_kinds for word in english()[kind]} - {"around"}
    harmless = {word for kind, words in english().items() if kind not in (*risky_kinds, *NO_WORDS) for word in words}
    assert not risky & harmless


def test_every_list_of_words_is_a_kind() -> None:
    assert set(english()) - NO_WORDS <= {kind.value for kind in WordKind}
