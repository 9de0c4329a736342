"""Responses judged sentence by sentence."""

import asyncio
import random
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import LiveScripted, ScriptedGenerator
from vlgenrm_ray.judge.inquiry import Inquiry, Item, JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.judge.live import judge
from vlgenrm_ray.judge.parts import least, sentences
from vlgenrm_ray.records import Judgement

WHOLE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=3)
BY_SENTENCE = WHOLE.model_copy(update={"unit": "sentence"})
PICTURE = Image.new("RGB", (16, 16))
ITEM = Item(
    id="q0/r0", images=(PICTURE,), question="Describe the image.", response="There is a star. There is a circle."
)


def sees_no_circle(prompt: Prompt, chance: random.Random) -> str:
    return "Verdict: No" if "circle" in prompt.text else "Verdict: Yes"


def part(reward: float | None, status: str = "ok") -> Judgement:
    return Judgement(id="p", reward=reward, status=status, num_critiques=2, verdict_mass=0.5, critiques=("a", "b"))


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
    assert [part.response for part in sentences(replace(ITEM, response=response))] == expected


@given(st.text(alphabet='aB. !?)"\n', max_size=40))
def test_no_word_is_lost_between_sentences(response: str) -> None:
    found = sentences(replace(ITEM, response=response))
    assert "".join("".join(part.response.split()) for part in found) == "".join(response.split())
    assert len({part.id for part in found}) == len(found)


@given(st.text(alphabet='aB1. !?)"\n\t\x1f\u2003', max_size=40))
def test_a_response_is_split_alike_wherever_its_blanks_begin(response: str) -> None:
    sentence = r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[^a-z\s])"
    expected: list[str] = []
    for found in re.split(rf"{sentence}|\s*\n\s*", response.strip()):
        if expected and not any(letter.isalpha() for letter in expected[-1]):
            expected[-1] = f"{expected[-1]} {found}".strip()
        else:
            expected.append(found)
    found = [part.response for part in sentences(replace(ITEM, response=response))]
    assert found == (expected if 1 < len(expected) <= 32 else found)


@pytest.mark.parametrize("response", ["a" + " " * 100_000 + "b", "a." + " \n" * 50_000 + "b", "1. " * 30_000])
def test_neither_blanks_nor_numbers_take_time(response: str) -> None:
    begin = time.process_time()
    sentences(replace(ITEM, response=response))
    assert time.process_time() - begin < 2.0


def test_a_response_of_very_many_sentences_is_judged_in_few_parts() -> None:
    found = sentences(replace(ITEM, response="A. " * 1000))
    assert len(found) == 32
    assert "".join(part.response for part in found).count("A.") == 1000


def test_one_sentence_is_judged_as_the_response_it_is() -> None:
    item = replace(ITEM, response="There is a star.")
    generator = ScriptedGenerator(sees_no_circle, confidence=0.9)
    assert Judge(BY_SENTENCE, generator).score([item]) == Judge(WHOLE, generator).score([item])


def test_the_whole_is_worth_what_its_worst_sentence_is() -> None:
    generator = ScriptedGenerator(sees_no_circle, confidence=0.9)
    (judged,) = Judge(BY_SENTENCE, generator).score([ITEM])
    assert judged.id == ITEM.id
    assert judged.reward == pytest.approx(0.1)
    assert judged.num_critiques == len(judged.critiques) == len(judged.p_yes) == 6
    assert judged.p_yes == pytest.approx((0.9, 0.9, 0.9, 0.1, 0.1, 0.1))


def test_the_served_judge_takes_responses_apart_as_the_local_one_does() -> None:
    scripted = ScriptedGenerator(sees_no_circle, confidence=0.9)
    judged = asyncio.run(judge(Inquiry(BY_SENTENCE), LiveScripted(scripted), ITEM, (PICTURE,)))
    assert judged.judgement == Judge(BY_SENTENCE, scripted).score([ITEM])[0]
    assert (judged.num_asked, len(judged.p_yes)) == (6, 6)


def test_a_sentence_without_a_reward_leaves_the_whole_without() -> None:
    made = least("q0/r0", [part(0.2), part(None, "unreadable_verdict"), part(0.9)])
    assert (made.reward, made.status, made.num_critiques) == (None, "unreadable_verdict", 6)
    assert least("q0/r0", [part(0.7), part(0.2)]).reward == 0.2
