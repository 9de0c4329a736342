"""Verdicts: where they are read, when they count, and how critiques are aggregated."""

import math
import re

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.engines.contracts import Sample, Token
from vlgenrm_ray.judge.verdict import (
    aggregate,
    find_verdict,
    mean,
    read_direct,
    read_verdict,
    strip_verdict,
    vote,
)
from vlgenrm_ray.records import JudgeCritique


def sample(text: str, *, yes: float = 0.6, no: float = 0.2, finish: str = "stop") -> Sample:
    """Split a text into tokens like a real vocabulary: words with the blank before, signs, line ends."""
    pieces = re.findall(r" ?\w+|\s|[^\w\s]+", text)
    assert "".join(pieces) == text
    tokens = tuple(Token(id=i, text=p, tracked_probabilities={"Yes": yes, "No": no}) for i, p in enumerate(pieces))
    return Sample(text=text, tokens=tokens, finish=finish)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Claim: a cup. Image: a cup. Right.\nVerdict: Yes", "yes"),
        ("Claim: a cup. Image: a jug. Wrong.\nVerdict: No", "no"),
        ("Verdict: Yes\nOn second thoughts.\nVerdict: No", "no"),
        ("All is right.\n**Verdict:** Yes", "yes"),
        ("verdict : no.", "no"),
        ("Verdict:\nNo\n", "no"),
        ("Verdict: Yes. The cup is there.", "yes"),
    ],
)
def test_the_verdict_is_the_word_after_the_last_marker(text: str, word: str) -> None:
    verdict = read_verdict(sample(text))
    assert verdict.word == word
    assert verdict.p_yes == pytest.approx(0.75)
    assert verdict.mass == pytest.approx(0.8)
    assert verdict.problem == ""


@pytest.mark.parametrize(
    ("text", "finish", "problem"),
    [
        ("A cup, so yes.", "stop", "no marker"),
        ("", "stop", "no marker"),
        ("All is right.\nVerdict:", "length", "cut off"),
        ("Verdict:", "stop", "cut off"),
        ("It says: Verdict: Yes, but the", "length", "cut off"),
        ("Verdict: Perhaps", "stop", "no word"),
        ("Verdict: Yesterday", "stop", "no word"),
    ],
)
def test_unreadable_verdicts_state_the_problem(text: str, finish: str, problem: str) -> None:
    verdict = read_verdict(sample(text, finish=finish))
    assert (verdict.word, verdict.p_yes, verdict.problem) == (None, None, problem)


def test_a_verdict_at_the_token_limit_is_complete() -> None:
    assert read_verdict(sample("Right.\nVerdict: No.", finish="length")).word == "no"


def test_a_small_mass_makes_the_verdict_unreadable() -> None:
    verdict = read_verdict(sample("Verdict: Yes", yes=0.04, no=0.01), min_mass=0.1)
    assert (verdict.word, verdict.p_yes, verdict.problem) == (None, None, "small mass")
    assert verdict.mass == pytest.approx(0.05)


@pytest.mark.parametrize(("yes", "no"), [(math.nan, 0.5), (0.5, math.nan), (math.inf, 0.1), (0.0, 0.0)])
def test_probabilities_that_are_not_finite_are_unreadable(yes: float, no: float) -> None:
    verdict = read_verdict(sample("Verdict: Yes", yes=yes, no=no))
    assert (verdict.word, verdict.p_yes) == (None, None)
    assert not math.isnan(verdict.mass)


def test_the_direct_verdict_is_the_first_word() -> None:
    assert read_direct(sample(" Yes")).word == "yes"
    assert read_direct(sample("\n No")).word == "no"
    assert read_direct(sample("")).problem == "cut off"
    assert read_direct(sample("The cup")).problem == "no word"


@given(st.text(alphabet="Verdict: YesNo\n*a.", max_size=40))
def test_find_verdict_agrees_with_strip_verdict(text: str) -> None:
    tokens = sample(text).tokens
    position = find_verdict(tokens)
    prefix = strip_verdict(text)
    assert (position is None) == (prefix is None)
    if position is not None and prefix is not None:
        assert "".join(t.text for t in tokens[:position]).startswith(prefix.rstrip("*"))
        assert not re.search(r"\bverdict\b[\s*_]*:", "".join(t.text for t in tokens[position:]), re.IGNORECASE)


def test_strip_verdict_keeps_the_text_up_to_the_marker() -> None:
    assert strip_verdict("Right.\nVerdict: Yes") == "Right.\nVerdict:"
    assert strip_verdict("no end") is None


def readable(p_yes: float) -> JudgeCritique:
    return factories.judge_critique(verdict="yes" if p_yes >= 0.5 else "no", p_yes=p_yes)


UNREADABLE = factories.judge_critique("", verdict=None, p_yes=None, verdict_mass=0.0)


def test_only_readable_critiques_are_aggregated() -> None:
    assert mean([readable(0.9), UNREADABLE, readable(0.3)]) == pytest.approx(0.6)
    assert vote([readable(0.9), UNREADABLE, readable(0.3), readable(0.8)]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_no_readable_critique_gives_no_reward_rather_than_zero(how: str) -> None:
    assert aggregate([UNREADABLE, UNREADABLE], how) is None  # type: ignore[arg-type]
    assert aggregate([], how) is None  # type: ignore[arg-type]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.integers(0, 4))
def test_unreadable_critiques_do_not_change_the_reward(scores: list[float], num_unreadable: int) -> None:
    critiques = [readable(s) for s in scores]
    for how in (mean, vote):
        reward = how(critiques)
        assert reward is not None
        assert 0.0 <= reward <= 1.0
        assert how([*critiques, *[UNREADABLE] * num_unreadable]) == reward
