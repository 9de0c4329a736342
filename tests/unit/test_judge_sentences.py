"""Sentence-wise judging: splitting responses, and the minimum over their sentences."""

import asyncio
import random
import time
from dataclasses import replace

import pytest
from fake_live_generator import FakeLiveGenerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput, min_over_sentences, split_sentences
from vlgenrm_ray.records import JudgeCritique, Judgement, SentenceReward

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


SENTENCES: dict[str, list[str]] = {
    "one": ["There is a star."],
    "no stop": ["a star"],
    "stops": ["A star.", "Two circles!", "Is it red?", "Yes."],
    "closing quote": ['It reads "Stop."', "Next to it is a car."],
    "quoted sentences": ['He said "It is red. It is big." and left.', "It is blue."],
    "speech": ['"Stop." he said.', "Then he left."],
    "decimals": ["About 3.5 m wide, i.e. wide.", "It costs .5 dollars.", "Version 2.0.1 is out.", "It is red."],
    "titles": ["It is Dr. Who.", "He waves.", "Mr. Smith vs. Prof. Lee and St. Paul Jr. are here.", "They wave."],
    "initials": ["He met J. F. Kennedy there.", "It is Kennedy.", "J. R. R. Tolkien wrote it."],
    "abbreviations before numbers": [
        "It is approx. 3 m wide.",
        "See no. 5 on the left.",
        "It is No. 7.",
        "Fig. 3 shows vol. 2, pp. 3-4.",
        "It opened on Jan. 3.",
        "It weighs max. 3 kg, avg. 2 kg, ca. 1 kg in all.",
    ],
    "numbers at the end": ["There are 3.", "One is red.", "It is item no. 12.", "Next to it is 13."],
    "unit at the end": ["It weighs 5 oz.", "It is red."],
    "other abbreviations": ["The U.S. flag, e.g. the red one, is shown at 5 p.m. in the picture.", "It waves."],
    "names with dots": ["See a.png.", "Visit www.a.com or run `x = 1.5`.", "Then go."],
    "lower case goes on": ["A star. two circles.", "Three."],
    "steps": ["Step 1. Look at the car.", "Step 2. Count the doors.", "It has 3."],
    "openings": ["Sure! It is a cat.", "It sleeps."],
    "Chinese": [
        "\u56fe\u4e2d\u6709\u4e00\u53ea\u732b\u3002",
        "\u5b83\u5728\u7761\u89c9\uff01",
        "\u662f\u5417\uff1f",
        "\u4ef7\u683c\u662f3.5\u5143\u3002",
    ],
    "Japanese": [
        "\u3053\u308c\u306f\u732b\u3067\u3059\u3002",
        "\u8d64\u3044\u3067\u3059\u304b\uff1f",
        "\u306f\u3044\u3002",
    ],
    "Arabic": [
        "\u0647\u0646\u0627\u0643 \u0642\u0637\u0629 \u062d\u0645\u0631\u0627\u0621.",
        "\u0647\u0644 \u0647\u064a \u0646\u0627\u0626\u0645\u0629\u061f",
        "\u0646\u0639\u0645\u060c \u0625\u0646\u0647\u0627 \u0646\u0627\u0626\u0645\u0629.",
    ],
    "Urdu": [
        "\u06cc\u06c1 \u0628\u0644\u06cc \u06c1\u06d2\u06d4",
        "\u0648\u06c1 \u0633\u0631\u062e \u06c1\u06d2\u06d4",
    ],
    "Hindi": [
        "\u092f\u0939 \u092c\u093f\u0932\u094d\u0932\u0940 \u0939\u0948\u0964",
        "\u0935\u0939 \u0932\u093e\u0932 \u0939\u0948\u0964",
    ],
    "Thai with stops": [
        "\u0e41\u0e21\u0e27\u0e41\u0e14\u0e07\u0e5a",
        "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e14\u0e33\u0e5b",
    ],
    "Thai without stops": [
        "\u0e21\u0e35\u0e41\u0e21\u0e27\u0e41\u0e14\u0e07 \u0e21\u0e31\u0e19\u0e19\u0e2d\u0e19\u0e2d\u0e22\u0e39\u0e48"
    ],
    "Khmer": ["\u1780\u17d2\u179a\u17a0\u1798\u17d4", "\u1781\u17d2\u1798\u17c5\u17d4"],
    "Greek": [
        "\u0395\u03af\u03bd\u03b1\u03b9 \u03b3\u03ac\u03c4\u03b1;",
        "\u039d\u03b1\u03b9.",
        "\u039a\u03cc\u03ba\u03ba\u03b9\u03bd\u03b7.",
    ],
    "German": ["Das ist z. B. ein Hund.", "Er ist ca. 3 m lang.", "Nr. 5 ist rot."],
}
_UNSPACED = ("Chinese", "Japanese")


def units(response: str) -> list[str]:
    return [part.response for part in split_sentences(replace(INPUT, response=response))]


@pytest.mark.parametrize("name", SENTENCES)
def test_a_paragraph_is_split_between_sentences(name: str) -> None:
    assert units(("" if name in _UNSPACED else " ").join(SENTENCES[name])) == SENTENCES[name]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("A star\n\n- a circle\n", ["A star", "- a circle"]),
        ("1. A star\n2. A circle is red.", ["1. A star", "2. A circle is red."]),
        ("- A red star. It is big.\n- A circle.", ["- A red star.", "It is big.", "- A circle."]),
        ("There is a red\ncircle on the left.\nIt is big.", ["There is a red\ncircle on the left.", "It is big."]),
        ("It shows:\n- a star\n- a circle\n\nBoth are red.", ["It shows:\n- a star\n- a circle", "Both are red."]),
        ("The colours are\n1. red\n2. blue", ["The colours are\n1. red\n2. blue"]),
        ("It shows:\n\nA cat. A dog.", ["It shows:\nA cat.", "A dog."]),
        ("# Answer\nA star. A circle.", ["# Answer\nA star.", "A circle."]),
        ("**Answer**\n\nA star. A circle.", ["**Answer**\nA star.", "A circle."]),
        (
            "```python\nx = 1. Y = 2.\n\nprint(x). A\n```\nIt prints 1. Then it stops.",
            ["```python\nx = 1. Y = 2.\n\nprint(x). A\n```", "It prints 1.", "Then it stops."],
        ),
        ("Code:\n```\nA. B. C.\n```\nDone.", ["Code:\n```\nA. B. C.\n```", "Done."]),
        ("~~~\nNo end. Here.", ["~~~\nNo end. Here."]),
        ("| a | b |\n|---|---|\n| 1. | 2. B |\n\nA table.", ["| a | b |\n|---|---|\n| 1. | 2. B |", "A table."]),
        ("A star. ...", ["A star. ..."]),
        ("**", ["**"]),
        ("  ", ["  "]),
        ("", [""]),
    ],
)
def test_lists_code_tables_and_wrapped_lines_are_not_cut(response: str, expected: list[str]) -> None:
    assert units(response) == expected


_PIECES = [
    *(sentence for sentences in SENTENCES.values() for sentence in sentences),
    *("\n", "\n\n", "- ", "1. ", ":", "```\n", "| a |", "# ", "**", '"', "e.g.", "J.", "no.", "3", "<p>"),
]


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map(" ".join) | st.text(max_size=60))
def test_no_word_is_lost_and_no_unit_is_without_one(response: str) -> None:
    units = split_sentences(replace(INPUT, response=response))
    assert "".join("".join(part.response.split()) for part in units) == "".join(response.split())
    assert len({part.id for part in units}) == len(units) <= 32
    assert len(units) == 1 or all(any(letter.isalpha() for letter in part.response) for part in units)


@pytest.mark.parametrize(
    "response",
    [
        "a" + " " * 60_000 + "b", "a." + " \n" * 30_000 + "b", "1. " * 20_000, "A. " * 20_000, '"' * 60_000,
        "`" * 60_000,
        "\u201c" * 30_000, "(" * 60_000, "- a\n" * 15_000, "a:\n" * 15_000, "```\n" * 15_000, "# \n" * 20_000,
        "| a |\n" * 10_000, "e.g. " * 12_000, "? " * 30_000, "\u3002" * 60_000,
    ],
)  # fmt: skip
def test_splitting_takes_linear_time(response: str) -> None:
    begin = time.process_time()
    split_sentences(replace(INPUT, response=response))
    assert time.process_time() - begin < 2.0


def test_many_sentences_are_grouped_into_32_parts() -> None:
    units = split_sentences(replace(INPUT, response="A star. " * 1000))
    assert len(units) == 32
    assert "".join(part.response for part in units).count("A star.") == 1000


def test_a_single_sentence_is_judged_like_a_whole_response() -> None:
    item = replace(INPUT, response="There is a star.")
    generator = ScriptedGenerator(denies_circles, confidence=0.9)
    (by_sentence,) = Judge(BY_SENTENCE, generator).score([item])
    assert [replace(by_sentence, sentences=())] == Judge(WHOLE, generator).score([item])
    assert by_sentence.sentences == (SentenceReward(text="There is a star.", reward=by_sentence.reward),)


def test_the_reward_is_the_lowest_of_the_sentences() -> None:
    generator = ScriptedGenerator(denies_circles, confidence=0.9)
    (judgement,) = Judge(BY_SENTENCE, generator).score([INPUT])
    assert judgement.id == INPUT.id
    assert judgement.reward == pytest.approx(0.1)
    assert [c.p_yes for c in judgement.critiques] == pytest.approx([0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    assert [sentence.reward for sentence in judgement.sentences] == pytest.approx([0.9, 0.1])
    assert " ".join(sentence.text for sentence in judgement.sentences) == INPUT.response
    assert [c.id for c in judgement.critiques[::3]] == ["q0/r0/s0/c0", "q0/r0/s1/c0"]


def test_a_live_engine_judges_sentences_as_the_batch_path_does() -> None:
    scripted = ScriptedGenerator(denies_circles, confidence=0.9)
    live = asyncio.run(Judge(BY_SENTENCE, FakeLiveGenerator(scripted)).score_live(INPUT, (IMAGE,)))
    (batch,) = Judge(BY_SENTENCE, scripted).score([INPUT])
    assert replace(live, engine_s=0.0, num_prompt_tokens=0) == batch
    assert (live.num_asked, len(live.critiques)) == (6, 6)


def test_a_sentence_without_a_reward_leaves_the_response_without() -> None:
    combined = min_over_sentences("q0/r0", [part(0.2), part(None, "unreadable_verdict"), part(0.9)])
    assert (combined.reward, combined.status) == (None, "unreadable_verdict")
    assert (len(combined.critiques), combined.num_asked, combined.num_tokens) == (6, 9, 18)
    assert min_over_sentences("q0/r0", [part(0.7), part(0.2)]).reward == 0.2
