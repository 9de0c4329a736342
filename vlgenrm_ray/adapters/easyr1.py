"""EasyR1: `worker.reward.reward_function=.../vlgenrm_ray/adapters/easyr1.py:compute_score`.

EasyR1 passes neither prompt nor image: `data.answer_key` names a column of JSON labels, written by
`judge.label.write_label`. It cannot mask a sample: an item without a reward raises, see `rewards.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import judge_client
from vlgenrm_ray.adapters.inputs import build_score_input
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import read_label

REWARD_NAME = "vlgenrm"
REWARD_TYPE = "batch"


def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]], *, url: str | None = None, token: str | None = None, **_: Any
) -> list[dict[str, float]]:
    """Return the rewards of a batch. `url` and `token` may come from `reward_function_kwargs`."""
    inputs = [build_score_input(row["response"], label=read_label(row["ground_truth"])) for row in reward_inputs]
    replies = judge_client(url, token).score(inputs)
    return [
        {"overall": reward, "verdict_mass": reply.verdict_mass, "scored": float(reply.reward is not None)}
        for reward, reply in zip(required_rewards(replies), replies, strict=True)
    ]
