"""verl's reward loop: a function, and a manager that sees the images.

Function: `reward.custom_reward_function.path=.../vlgenrm_ray/adapters/verl.py`, `.name=compute_score`. It is given no
image: `extra_info` (or `ground_truth`) holds `question` and `image`, see `judge/label.py`.
Manager: `reward.reward_manager.source=importlib`, `.module.path=...`, `.name=JudgeRewardManager`: prompt and images
come from the sample's `raw_prompt`.
verl has no way to mask a sample: no reward raises, see `failures.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlgenrm_ray.adapters.asking import ask, peer
from vlgenrm_ray.adapters.connection import async_judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import Label, read
from vlgenrm_ray.judge.wire import ScoreReply


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    token: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """A reward function of verl; `url` and `token` may come from `reward_kwargs`."""
    label = _label(extra_info, ground_truth)
    (reply,) = await async_judge(url, token).score([ask(solution_str, label=label)])
    return _told(reply)


class JudgeRewardManager(peer("verl.experimental.reward_loop.reward_manager.base:RewardManagerBase")):  # type: ignore[misc]
    """A reward manager of verl; the images are those the policy saw."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        # The base's own constructor differs between versions, and nothing it sets up is used.
        self.config = config
        self.tokenizer = tokenizer

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of the last sequence of one sample."""
        row = data[-1]
        ids = row.batch["responses"]
        length = int(row.batch["attention_mask"][-ids.shape[-1] :].sum())
        response = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        fields = row.non_tensor_batch
        truth = (fields.get("reward_model") or {}).get("ground_truth")
        label = _label(fields.get("extra_info"), truth)
        (reply,) = await async_judge().score([ask(response, prompt=fields.get("raw_prompt"), label=label)])
        told = _told(reply)
        return {"reward_score": told["score"], "reward_extra_info": told}


def _label(extra_info: Mapping[str, Any] | None, ground_truth: Any) -> Label:
    """What `extra_info` says, or else the ground truth; a plain ground truth is the reference."""
    truth, extra = read(ground_truth), read(extra_info or None)
    return replace(
        truth,
        question=extra.question or truth.question,
        images=extra.images or truth.images,
        reference=extra.reference or truth.reference,
    )


def _told(reply: ScoreReply) -> dict[str, float]:
    # All samples must have the same keys, and only numbers.
    return {
        "score": required([reply])[0],
        "verdict_mass": reply.verdict_mass,
        "scored": float(reply.reward is not None),
    }
