"""EasyR1: `worker.reward.reward_function=.../vlgenrm_ray/adapters/easyr1.py:compute_score`.

EasyR1 passes neither prompt nor image: `data.answer_key` names a column of JSON labels, see `judge/label.py`, whose
`write` makes them. It has no way to mask a sample: no reward raises, see `failures.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask
from vlgenrm_ray.adapters.connection import judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import read

REWARD_NAME = "vlgenrm"
REWARD_TYPE = "batch"


def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]], *, url: str | None = None, token: str | None = None, **_: Any
) -> list[dict[str, float]]:
    """A batch's rewards; `url` and `token` may come from `reward_function_kwargs`."""
    asks = [ask(row["response"], label=read(row["ground_truth"])) for row in reward_inputs]
    replies = judge(url, token).score(asks)
    return [
        {"overall": reward, "verdict_mass": reply.verdict_mass, "scored": float(reply.reward is not None)}
        for reward, reply in zip(required(replies), replies, strict=True)
    ]
