"""Claim-level rewards: segments of responses, their tokens, and their advantages."""

import itertools
from typing import Any

import factories
import numpy as np
import pytest
from fake_encoder import FakeEncoder
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.judge import sentences
from vlgenrm_ray.policy.advantages import GroupStatus, group_relative_advantages
from vlgenrm_ray.policy.batching import TrainingSamples, build_training_samples
from vlgenrm_ray.policy.config import AlgorithmConfig, PolicyConfig
from vlgenrm_ray.policy.segments import (
    place_at_ends,
    segment_relative_advantages,
    spread_over_tokens,
    token_ranges,
)
from vlgenrm_ray.records import Rollout, Segment
from vlgenrm_ray.rewards.reward import sentence_segments

rewards = st.integers(0, 8).map(lambda n: n / 8)
pieces = st.lists(st.sampled_from(["There", " is", " a", " star", ".", " ", "\n\n", "", " No", ".\n\nIt"]), min_size=1)
scales = st.sampled_from(["group", "batch", "none"])


def segments_of(text: str, cuts: list[int]) -> list[Segment]:
    """Divide a text at some of its characters that are not whitespace."""
    letters = [i for i, letter in enumerate(text) if not letter.isspace()]
    starts = sorted({letters[cut % len(letters)] for cut in cuts} | {letters[0]})
    ends = [*starts[1:], len(text)]
    return [Segment(start=s, end=e, reward=n / 8) for n, (s, e) in enumerate(zip(starts, ends, strict=True))]


@given(pieces, st.lists(st.integers(0, 99), max_size=5))
def test_token_ranges_cover_all_tokens_exactly_and_every_segment_is_where_its_text_is(
    texts: list[str], cuts: list[int]
) -> None:
    text = "".join(texts)
    if not text.strip():
        return
    segments = segments_of(text, cuts)
    ranges = token_ranges([*texts, ""], segments)
    assert list(itertools.chain(*ranges)) == list(range(len(texts) + 1))
    ends = np.cumsum([0, *map(len, texts)])
    for segment, tokens in zip(segments, ranges, strict=True):
        for token in tokens:
            if token < len(texts) and (stripped := texts[token].lstrip()):
                assert segment.start <= ends[token + 1] - len(stripped) < segment.end


@given(pieces, st.lists(st.integers(0, 99), max_size=5), st.lists(rewards, min_size=6, max_size=6))
def test_rewards_at_ends_sum_up_to_the_mean_of_the_segments(
    texts: list[str], cuts: list[int], values: list[float]
) -> None:
    if not "".join(texts).strip():
        return
    segments = segments_of("".join(texts), cuts)
    ranges = token_ranges(texts, segments)
    values = values[: len(segments)]
    assert sum(place_at_ends(values, ranges)) == pytest.approx(np.mean(values))
    # If all segments agree, that is the reward of the response.
    assert sum(place_at_ends([0.75] * len(segments), ranges)) == pytest.approx(0.75)
    assert set(spread_over_tokens(values, ranges)) <= set(values)


def test_tokens_of_segments_by_hand() -> None:
    texts = ["There", " is", " a", " star", ".", " It", " is", " red", ".", ""]
    segments = [Segment(start=0, end=16, reward=1.0), Segment(start=17, end=27, reward=0.0)]
    assert token_ranges(texts, segments) == [range(5), range(5, 10)]
    assert place_at_ends([1.0, 0.5], [range(5), range(5, 10)]) == (0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.25)


@given(st.lists(st.lists(st.none() | st.lists(rewards, min_size=1, max_size=3), min_size=2), min_size=1), scales)
def test_segments_that_agree_have_the_advantages_of_the_response(
    groups: list[list[list[float] | None]], scale: str
) -> None:
    config = AlgorithmConfig.model_validate({"scale": scale})
    agreeing = [[None if sample is None else (sample[0],) * len(sample) for sample in group] for group in groups]
    by_segment = segment_relative_advantages(agreeing, config)
    whole = [[None if sample is None else sample[0] for sample in group] for group in agreeing]
    for ours, group in zip(by_segment, group_relative_advantages(whole, config), strict=True):
        assert ours.status == group.status
        for several, one in zip(ours.advantages, group.advantages, strict=True):
            assert (several is None) == (one is None)
            assert several is None or several == pytest.approx([one] * len(several), abs=1e-9)


def test_a_wrong_sentence_alone_is_pushed_down() -> None:
    # One of three sentences of each sample is wrong: the responses are equal, their sentences are not.
    (group,) = segment_relative_advantages([[(1.0, 0.0, 1.0), (1.0, 1.0, 0.0), None]], AlgorithmConfig(scale="none"))
    assert group.status is GroupStatus.USED
    third = pytest.approx(1 / 3)
    assert group.advantages == ((third, pytest.approx(-2 / 3), third), (third, third, pytest.approx(-2 / 3)), None)


# -- samples -----------------------------------------------------------------------------------------------------------


def rollout(index: int, *values: float, text: str = "abcd", **over: Any) -> Rollout:
    """Return a rollout of the tokens a, b, c, d and the end of turn, with a segment per two letters."""
    segments = tuple(Segment(start=2 * i, end=2 * i + 2, reward=value) for i, value in enumerate(values))
    fields = {"ids": (1, 2 + 1, 4, 5, 2), "logprobs": (-0.5,) * 5, "text": text, "reward": min(values, default=1.0)}
    return factories.rollout(f"q/s0/r{index}", segments=segments, **(fields | over))


def build(*group: Rollout, **algorithm: Any) -> TrainingSamples:
    reward = {"function": "a:b", "granularity": "claim"}
    config = PolicyConfig.model_validate({"rewards": [reward], "algorithm": {"scale": "none"} | algorithm})
    return build_training_samples([group], config, FakeEncoder())


def test_every_token_has_the_advantage_of_its_segment() -> None:
    text = "acde"
    built = build(rollout(0, 1.0, 0.0, text=text), rollout(1, 1.0, 1.0, text=text))
    assert [sample.token_advantages for sample in built.samples] == [
        (0.25, 0.25, -0.75, -0.75, -0.75),
        (0.25, 0.25, 0.25, 0.25, 0.25),
    ]
    assert built.metrics()["segments"] == 2.0


def test_a_critic_gets_the_reward_of_each_segment_at_its_end() -> None:
    built = build(rollout(0, 1.0, 0.5, text="acde"), algorithm="ppo")
    assert built.samples[0].token_rewards == (0.0, 0.5, 0.0, 0.0, 0.25)


def test_segments_that_do_not_fit_the_tokens_become_one_reward_and_are_counted() -> None:
    built = build(rollout(0, 1.0, 0.0, text="another text"), rollout(1, 1.0, 1.0, text="acde"))
    assert (built.samples[0].token_advantages, built.samples[0].advantage) == ((), -0.25)
    assert built.metrics()["samples_unaligned"] == 1.0


def test_overlong_responses_pay_with_every_segment() -> None:
    overlong = {"handling": "penalty", "buffer": 128, "penalty": 1.28}
    built = build(rollout(0, 1.0, 0.0, text="acde"), rollout(1, 1.0, 1.0, text="acde"), overlong=overlong)
    assert built.samples[0].token_advantages == pytest.approx((0.25, 0.25, -0.75, -0.75, -0.75))
    assert built.samples[0].reward == pytest.approx(-0.05)


@pytest.mark.parametrize("name", ["rloo", "gspo", "raft", "reinforce_plus_plus"])
def test_an_algorithm_without_advantages_of_segments_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="use grpo, dr_grpo, dapo or ppo"):
        build(rollout(0, 1.0), algorithm=name)


# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("There is a star. It is red.", ["There is a star.", "It is red."]),
        ("  There is a star.\n\n- a box\n- a ball", ["There is a star.", "- a box\n- a ball"]),
        ("One.", ["One."]),
    ],
)
def test_sentences_are_located_in_their_response(response: str, expected: list[str]) -> None:
    units = sentences.split(response)
    spans = sentences.locate(response, units)
    assert spans is not None
    joined = [" ".join(response[start:end].split()) for start, end in spans]
    assert joined == [" ".join(unit.split()) for unit in units]
    assert len(spans) == len(units)


@given(st.text(alphabet="ab .\n-1:", max_size=60))
def test_located_sentences_have_every_letter_once_and_in_order(response: str) -> None:
    units = sentences.split(response)
    spans = sentences.locate(response, units)
    if not units:
        assert not spans
        return
    assert spans is not None
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert "".join("".join(response[s:e].split()) for s, e in spans) == "".join(response.split())


def test_a_thinking_before_the_answer_gets_the_reward_of_the_response() -> None:
    response = "<think>A star?</think> There is a star. It is red."
    judged = [("There is a star.", 0.9), ("It is red.", 0.2)]
    assert sentence_segments(response, judged, reward=0.2) == (
        Segment(start=0, end=23, reward=0.2),
        Segment(start=23, end=39, reward=0.9),
        Segment(start=40, end=50, reward=0.2),
    )
    # A part between the sentences was not judged: one reward for all.
    assert sentence_segments("There is a star. Verdict: Yes. It is red.", judged, reward=0.2) == ()
