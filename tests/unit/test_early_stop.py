"""Early stop: critiques in portions, the same critiques as without it, and no more than the mean needs."""

import asyncio
import random

import pytest
from factories import judge_critique
from fake_live_generator import FakeLiveGenerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt, Sampling
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.verdict import is_settled, weighted_vote
from vlgenrm_ray.records import Judgement

IMAGE = Image.new("RGB", (16, 16))
ALL = JudgeConfig(prompt="shapes_cot", num_critiques=16)
STOPPING = ALL.model_copy(update={"early_stop": 0.15})
ITEMS = [
    JudgeInput(id=f"q{i}/r1", images=(IMAGE,), question="Describe the image.", response=response)
    for i, response in enumerate(["There is a star.", "There may be a circle.", "There is a square."])
]


def verdict(prompt: Prompt, rng: random.Random) -> str:
    """Always Yes for the star, never readable for the square, a coin for the circle."""
    if "square" in prompt.text:
        return "I cannot tell."
    return "Verdict: Yes" if "star" in prompt.text or rng.random() < 0.5 else "Verdict: No"


class CountingGenerator(ScriptedGenerator):
    """Counts samples, and records the portions."""

    def __init__(self) -> None:
        super().__init__(verdict, confidence=0.99)
        self.portions: list[tuple[int, int, int]] = []

    def generate(self, prompts, sampling: Sampling, seeds=None):  # type: ignore[no-untyped-def]
        self.portions.append((sampling.first, sampling.n, len(prompts)))
        return super().generate(prompts, sampling, seeds)


def test_portions_grow_and_settled_responses_get_no_more() -> None:
    generator = CountingGenerator()
    star, circle, square = Judge(STOPPING, generator).score(ITEMS)
    assert generator.portions[:3] == [(0, 2, 3), (2, 2, 3), (4, 4, 2)]
    assert (len(star.critiques), star.num_asked) == (4, 4)
    assert len(circle.critiques) > 4
    assert (square.status, len(square.critiques)) == ("unreadable_verdict", 16)


def test_the_critiques_are_the_first_ones_of_all() -> None:
    whole = Judge(ALL, CountingGenerator()).score(ITEMS)
    early = Judge(STOPPING, CountingGenerator()).score(ITEMS)
    for one, other in zip(whole, early, strict=True):
        assert one.critiques[: len(other.critiques)] == other.critiques
        assert [c.id.rpartition("/")[2] for c in other.critiques] == [f"c{k}" for k in range(len(other.critiques))]


def test_a_live_engine_stops_at_the_same_critique() -> None:
    batch = Judge(STOPPING, CountingGenerator()).score(ITEMS)

    async def live(item: JudgeInput) -> Judgement:
        return await Judge(STOPPING, FakeLiveGenerator(CountingGenerator())).score_live(item, (IMAGE,))

    for item, expected in zip(ITEMS, batch, strict=True):
        judgement = asyncio.run(live(item))
        assert judgement.critiques == expected.critiques
        assert judgement.num_asked == expected.num_asked
        assert judgement.reward == expected.reward


def test_a_deadline_in_a_portion_leaves_the_judgement_incomplete() -> None:
    slow = FakeLiveGenerator(CountingGenerator(), lambda prompt, place: 0.0 if place == 0 else 30.0)

    async def run() -> Judgement:
        deadline = asyncio.get_running_loop().time() + 0.2
        return await Judge(STOPPING, slow).score_live(ITEMS[0], (IMAGE,), deadline=deadline)

    judgement = asyncio.run(run())
    assert (len(judgement.critiques), judgement.num_asked) == (1, 16)


def test_training_gets_all_critiques() -> None:
    outcomes = Judge(STOPPING, CountingGenerator()).critique(ITEMS)
    assert [len(critiques) for critiques in outcomes if isinstance(critiques, tuple)] == [16, 16, 16]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 64])
def test_portions_end_at_k(k: int) -> None:
    generator = CountingGenerator()
    Judge(STOPPING.model_copy(update={"num_critiques": k}), generator).score(ITEMS[2:])
    assert sum(n for _, n, _ in generator.portions) == k
    assert [first for first, _, _ in generator.portions] == [0, *(f + n for f, n, _ in generator.portions)][
        : len(generator.portions)
    ]


def critiques(*scores: float | None):  # type: ignore[no-untyped-def]
    return [judge_critique(p_yes=score, verdict=None if score is None else "yes") for score in scores]


def test_agreement_settles_and_disagreement_does_not() -> None:
    assert not is_settled(critiques(1.0, 1.0), 0.15)
    assert is_settled(critiques(1.0, 1.0), 0.2)
    assert is_settled(critiques(1.0, 1.0, 1.0, 1.0), 0.15)
    assert not is_settled(critiques(1.0, 0.0, 1.0, 0.0), 0.15)
    assert not is_settled(critiques(*[None] * 50), 0.15)


scores = st.lists(st.one_of(st.none(), st.floats(0.0, 1.0)), max_size=12)


@given(scores)
def test_weighted_votes_lie_between_the_critiques_and_sure_ones_count_more(values: list[float | None]) -> None:
    readable = [value for value in values if value is not None]
    reward = weighted_vote(critiques(*values))
    if not readable:
        assert reward is None
        return
    assert reward is not None
    assert min(*readable, 0.5) - 1e-9 <= reward <= max(*readable, 0.5) + 1e-9
    assert weighted_vote(critiques(*values, 0.5)) == pytest.approx(reward)


def test_the_weighted_vote_is_worked_by_hand() -> None:
    # Weights |2s - 1|: 0.8, 0.2, 0. (0.8 x 0.9 + 0.2 x 0.4) / 1.0
    assert weighted_vote(critiques(0.9, 0.4, 0.5, None)) == pytest.approx(0.8)
    assert weighted_vote(critiques(0.5, 0.5)) == 0.5
    (judgement,) = Judge(ALL.model_copy(update={"aggregator": "weighted"}), CountingGenerator()).score(ITEMS[:1])
    assert judgement.reward == pytest.approx(0.99)
