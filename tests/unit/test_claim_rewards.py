"""Rewards with `granularity: claim`: which of them give segments, and their sum."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import factories
import httpx
import pytest
from fake_service import FakeService
from pydantic import ValidationError

from vlgenrm_ray.errors import RemoteRefusalError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge
from vlgenrm_ray.judge.wire import ScoreReply, Status, WireSentence
from vlgenrm_ray.records import Judgement, Question, Rollout, Segment, SentenceReward
from vlgenrm_ray.rewards.composite import RewardTerm, WeightedSumReward
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.rewards.function import FunctionReward
from vlgenrm_ray.rewards.local_judge import LocalJudgeReward
from vlgenrm_ray.rewards.reward import Reward, RewardOutput, SegmentedReward
from vlgenrm_ray.rewards.served_judge import ServedJudgeReward
from vlgenrm_ray.serving.service import build_reply
from vlgenrm_ray.shapes import world

TEXT = "There is a star. It is red."
SEGMENTS = (Segment(start=0, end=16, reward=0.9), Segment(start=17, end=27, reward=0.2))
JUDGED = (("There is a star.", 0.9), ("It is red.", 0.2))


def rollout(text: str = TEXT) -> Rollout:
    question = factories.question(image=factories.image(uri="data:image/png;base64,iVBORw0KGgo="))
    return factories.rollout(text=text, question=question)


def score(reward: Reward) -> RewardOutput:
    return asyncio.run(reward.score([rollout()]))[0]


class FakeClient:
    """A client of a judge that judges by the sentence."""

    async def score(self, items: Any, **_: Any) -> list[ScoreReply]:
        sentences = [WireSentence(text=text, reward=reward) for text, reward in JUDGED]
        return [ScoreReply(reward=0.2, status=Status.OK, sentences=sentences) for _ in items]


def segmented(question: Question, response: str) -> SegmentedReward:
    return SegmentedReward(reward=0.2, segments=SEGMENTS)


async def judge_by_sentence(items: Any) -> list[Judgement]:
    sentences = tuple(SentenceReward(text=text, reward=reward) for text, reward in JUDGED)
    return [Judgement(id=item.id, reward=0.2, status="ok", sentences=sentences) for item in items]


@pytest.mark.parametrize("by_segment", [True, False])
def test_every_kind_of_reward_gives_segments_if_it_is_to(by_segment: bool) -> None:
    rewards: list[Reward] = [
        ServedJudgeReward(FakeClient(), by_sentence=by_segment),  # type: ignore[arg-type]
        LocalJudgeReward(judge_by_sentence, by_sentence=by_segment),
        FunctionReward(segmented, by_segment=by_segment),
    ]
    for reward in rewards:
        output = score(reward)
        assert (output.reward, output.status) == (0.2, "ok")
        assert output.segments == (SEGMENTS if by_segment else ())


def test_a_service_that_judges_whole_responses_is_refused_when_the_run_starts_and_when_it_scores() -> None:
    client = AsyncRemoteJudge("http://judge", retries=0, transport=httpx.MockTransport(FakeService()))
    reward = ServedJudgeReward(client, by_sentence=True)
    with pytest.raises(RemoteRefusalError, match=r"serve it with judge\.unit: sentence"):
        asyncio.run(reward.score([rollout("0.5")]))
    config = {"granularity": "claim", "judge": {"engine": {"model": "m"}}}
    with pytest.raises(ValidationError, match="unit: sentence"):
        RewardConfig.model_validate(config)
    assert RewardConfig.model_validate(config | {"judge": {"engine": {"model": "m"}, "judge": {"unit": "sentence"}}})


def test_a_reply_has_the_reward_of_each_sentence() -> None:
    judgement = asyncio.run(judge_by_sentence([rollout()]))[0]
    reply = build_reply(judgement, "v1", queued_s=0.0)
    assert [(sentence.text, sentence.reward) for sentence in reply.sentences] == list(JUDGED)
    assert ScoreReply.model_validate_json(reply.model_dump_json()) == reply


def test_a_sum_has_the_common_parts_of_all_segments() -> None:
    def halves(question: Question, response: str) -> SegmentedReward:
        parts = (Segment(start=0, end=9, reward=1.0), Segment(start=9, end=27, reward=0.0))
        return SegmentedReward(reward=0.5, segments=parts)

    terms = [
        RewardTerm("judge", 1.0, FunctionReward(segmented, by_segment=True)),
        RewardTerm("halves", 2.0, FunctionReward(halves, by_segment=True)),
        RewardTerm("whole", 1.0, FunctionReward(lambda question, response: 0.25)),
    ]
    output = score(WeightedSumReward(terms))
    assert output.reward == pytest.approx(0.2 + 2 * 0.5 + 0.25)
    assert [(s.start, s.end, s.reward) for s in output.segments] == [
        (0, 9, pytest.approx(0.9 + 2.0 + 0.25)),
        (9, 17, pytest.approx(0.9 + 0.25)),
        (17, 27, pytest.approx(0.2 + 0.25)),
    ]
    assert score(WeightedSumReward(terms[2:])).segments == ()


def test_a_failed_segmented_reward_is_a_status() -> None:
    endless = SegmentedReward(reward=float("nan"), segments=SEGMENTS)
    output = score(FunctionReward(lambda question, response: endless, by_segment=True))
    assert (output.reward, output.status, output.segments) == (None, "not_finite", ())


def test_the_truth_of_sentences_agrees_with_that_of_the_response(tmp_path: Path) -> None:
    questions = [q for q in world.questions(tmp_path, seed=3, split="train", count=20) if q.kind == "describe"]
    for question, other in itertools.pairwise(questions):
        assert question.reference is not None
        true = world.sentences_are_true(question, question.reference)
        assert (true.reward, {segment.reward for segment in true.segments}) == (1.0, {1.0})
        foreign = f"{question.reference} Nice weather."
        mixed = world.sentences_are_true(question, foreign)
        assert mixed.reward == 0.0
        assert [segment.reward for segment in mixed.segments][-1] == 0.0
        wrong = world.sentences_are_true(question, other.reference or "")
        assert (wrong.reward == 1.0) == all(segment.reward for segment in wrong.segments)
