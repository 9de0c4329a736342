"""Sentence-wise judging: splitting responses, and the minimum over their sentences."""

import asyncio
import random
import re
import time
from dataclasses import replace

import pytest
from fake_live_generator import FakeLiveGenerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput, min_over_sentences, split_sentences
from vlgenrm_ray.records import JudgeCritique, Judgement

WHOLE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=3)
BY_SENTENCE = WHOLE.model_copy(update={"unit": "sentence"})
IMAGE = Image.new("RGB", (16, 16))
INPUT = JudgeInput(
    id="q0/r0", images=(IMAGE,), question="Describe the image.", response="There is a star. There is a circle."
)


def denies_circles(prompt: Prompt, rng: random.Random) -> str:
    return "Verdict: No" if "circle" in prompt.text else "Verdict: Yes"


def part(reward: float | None, status: str = "ok") -> Judgement:
    critiques = tuple(
        JudgeCritique(id=f"p/c{k}", text="", verdict=None, p_yes=None, verdict_mass=0.5, num_tokens=3, seed=0)
        for k in range(2)
    )
    return Judgement(id="p", reward=reward, status=status, critiques=critiques, num_asked=3, verdict_mass=0.5)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("There is a star.", ["There is a star."]),
        ("a star", ["a star"]),
        ("A star. Two circles! Is it red? Yes.", ["A star.", "Two circles!", "Is it red?", "Yes."]),
        ('It reads "Stop." Next to it is a car.', ['It reads "Stop."', "Next to it is a car."]),
        ("About 3.5 m wide, i.e. wide. It is red.", ["About 3.5 m wide, i.e. wide.", "It is red."]),
        ("A star\n\n- a circle\n", ["A star", "- a circle"]),
        ("1. A star\n2. A circle is red.", ["1. A star", "2. A circle is red."]),
        ("It is Dr. Who. He waves.", ["It is Dr. Who.", "He waves."]),
        ("There are 3. One is red.", ["There are 3.", "One is red."]),
        ("  ", ["  "]),
        ("", [""]),
    ],
)
def test_a_response_is_split_between_sentences(response: str, expected: list[str]) -> None:
    assert [part.response for part in split_sentences(replace(INPUT, response=response))] == expected


@given(st.text(alphabet='aB. !?)"\n', max_size=40))
def test_no_word_is_lost_between_sentences(response: str) -> None:
    found = split_sentences(replace(INPUT, response=response))
    assert "".join("".join(part.response.split()) for part in found) == "".join(response.split())
    assert len({part.id for part in found}) == len(found)


@given(st.text(alphabet='aB1. !?)"\n\t\x1f\u2003', max_size=40))
def test_splitting_equals_the_plain_regular_expression(response: str) -> None:
    sentence = r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[^a-z\s])"
    expected: list[str] = []
    for found in re.split(rf"{sentence}|\s*\n\s*", response.strip()):
        if expected and not any(letter.isalpha() for letter in expected[-1]):
            expected[-1] = f"{expected[-1]} {found}".strip()
        else:
            expected.append(found)
    parts = [part.response for part in split_sentences(replace(INPUT, response=response))]
    assert parts == (expected if 1 < len(expected) <= 32 else parts)


@pytest.mark.parametrize("response", ["a" + " " * 100_000 + "b", "a." + " \n" * 50_000 + "b", "1. " * 30_000])
def test_splitting_takes_linear_time(response: str) -> None:
    begin = time.process_time()
    split_sentences(replace(INPUT, response=response))
    assert time.process_time() - begin < 2.0


def test_many_sentences_are_grouped_into_32_parts() -> None:
    found = split_sentences(replace(INPUT, response="A. " * 1000))
    assert len(found) == 32
    assert "".join(part.response for part in found).count("A.") == 1000


def test_a_single_sentence_is_judged_like_a_whole_response() -> None:
    item = replace(INPUT, response="There is a star.")
    generator = ScriptedGenerator(denies_circles, confidence=0.9)
    assert Judge(BY_SENTENCE, generator).score([item]) == Judge(WHOLE, generator).score([item])


def test_the_reward_is_the_lowest_of_the_sentences() -> None:
    generator = ScriptedGenerator(denies_circles, confidence=0.9)
    (judgement,) = Judge(BY_SENTENCE, generator).score([INPUT])
    assert judgement.id == INPUT.id
    assert judgement.reward == pytest.approx(0.1)
    assert [c.p_yes for c in judgement.critiques] == pytest.approx([0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    assert [c.id for c in judgement.critiques[::3]] == ["q0/r0/s0/c0", "q0/r0/s1/c0"]


def test_a_live_engine_judges_sentences_as_the_batch_path_does() -> None:
    scripted = ScriptedGenerator(denies_circles, confidence=0.9)
    live = asyncio.run(Judge(BY_SENTENCE, FakeLiveGenerator(scripted)).score_live(INPUT, (IMAGE,)))
    (batch,) = Judge(BY_SENTENCE, scripted).score([INPUT])
    assert replace(live, engine_s=0.0) == batch
    assert (live.num_asked, len(live.critiques)) == (6, 6)


def test_a_sentence_without_a_reward_leaves_the_response_without() -> None:
    combined = min_over_sentences("q0/r0", [part(0.2), part(None, "unreadable_verdict"), part(0.9)])
    assert (combined.reward, combined.status) == (None, "unreadable_verdict")
    assert (len(combined.critiques), combined.num_asked, combined.num_tokens) == (6, 9, 18)
    assert min_over_sentences("q0/r0", [part(0.7), part(0.2)]).reward == 0.2
