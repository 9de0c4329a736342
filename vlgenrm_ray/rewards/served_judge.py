"""A served judge as a reward: over HTTP, or over a Ray Serve handle on the same cluster."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from vlgenrm_ray.judge.remote import AsyncRemoteJudge, ScoreInput
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.reward import Reward, RewardOutput

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
    ) -> None:
        """Wrap a client of the service.

        Args:
            judge: Client of the service.
            mode: `cot` to score with critiques, `direct` without; None: as the service is configured.
            num_critiques: Critiques per rollout; None: as the service is configured.
            deadline_s: Seconds after which a rollout that is not judged has no reward.
        """
        self._judge = judge
        self._mode = mode
        self._num_critiques = num_critiques
        self._deadline_s = deadline_s

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        inputs = [self._input(r.text, r.question.text, [i.uri for i in r.question.images]) for r in rollouts]
        replies = await self._judge.score(inputs, deadline_s=self._deadline_s)
        return [
            RewardOutput(
                reward=reply.reward,
                status=reply.status.value,
                critique=reply.critiques[0].text if reply.critiques else "",
                detail=reply.detail,
            )
            for reply in replies
        ]

    async def check(self) -> None:
        """See `Reward.check`. The reward counts as available if the service answers at all."""
        probe = replace(self._input(_PROBE_RESPONSE, _PROBE_QUESTION), allow_blind=True)
        await self._judge.score([probe])

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
