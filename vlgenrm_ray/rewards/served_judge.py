"""A served judge as a reward: over HTTP, or over a Ray Serve handle on the same cluster."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from vlgenrm_ray.errors import RemoteRefusalError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, ScoreInput
from vlgenrm_ray.judge.wire import ScoreReply
from vlgenrm_ray.records import Rollout, Segment
from vlgenrm_ray.rewards.reward import Reward, RewardOutput, sentence_segments

_PROBE_QUESTION = "Is there an image?"
_PROBE_RESPONSE = "No."


class ServedJudgeReward:
    """A `Reward` that a service computes."""

    def __init__(
        self,
        judge: AsyncRemoteJudge,
        *,
        mode: Literal["cot", "direct"] | None = None,
        num_critiques: int | None = None,
        deadline_s: float = 300.0,
        by_sentence: bool = False,
    ) -> None:
        """Wrap a client of the service.

        Args:
            judge: Client of the service.
            mode: `cot` to score with critiques, `direct` without; None: as the service is configured.
            num_critiques: Critiques per rollout; None: as the service is configured.
            deadline_s: Seconds after which a rollout that is not judged has no reward.
            by_sentence: Return the rewards of sentences as segments; the service must judge by the sentence.
        """
        self._judge = judge
        self._mode = mode
        self._num_critiques = num_critiques
        self._deadline_s = deadline_s
        self._by_sentence = by_sentence

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        inputs = [self._input(r.text, r.question.text, [i.uri for i in r.question.images]) for r in rollouts]
        replies = await self._judge.score(inputs, deadline_s=self._deadline_s)
        return [self._output(rollout, reply) for rollout, reply in zip(rollouts, replies, strict=True)]

    def _output(self, rollout: Rollout, reply: ScoreReply) -> RewardOutput:
        segments: tuple[Segment, ...] = ()
        if self._by_sentence and reply.reward is not None:
            _require_sentences(reply)
            rewards = [(sentence.text, sentence.reward) for sentence in reply.sentences]
            segments = sentence_segments(rollout.text, rewards, reward=reply.reward)
        return RewardOutput(
            reward=reply.reward,
            status=reply.status.value,
            critique=reply.critiques[0].text if reply.critiques else "",
            detail=reply.detail,
            segments=segments,
        )

    async def check(self) -> None:
        """See `Reward.check`. The reward counts as available if the service answers at all."""
        probe = replace(self._input(_PROBE_RESPONSE, _PROBE_QUESTION), allow_blind=True)
        (reply,) = await self._judge.score([probe])
        if self._by_sentence and reply.reward is not None:
            _require_sentences(reply)

    async def close(self) -> None:
        """See `Reward.close`."""
        await self._judge.close()

    def image_dependent_part(self) -> Reward:
        """See `Reward.image_dependent_part`."""
        return self

    def _input(self, response: str, question: str, images: Sequence[str] = ()) -> ScoreInput:
        # Without the reference answer of the question: a policy is judged by what can be seen in the image.
        return ScoreInput(
            images=images,
            question=question,
            response=response,
            mode=self._mode,
            num_critiques=self._num_critiques,
        )


def _require_sentences(reply: ScoreReply) -> None:
    """Raise RemoteRefusalError if a reply with a reward has none of its sentences."""
    if not reply.sentences:
        raise RemoteRefusalError(
            "granularity: claim needs a judge that judges by the sentence, and the service judges whole responses; "
            "serve it with judge.unit: sentence"
        )
