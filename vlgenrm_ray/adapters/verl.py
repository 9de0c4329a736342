"""verl's reward loop (read and run: 0.9.1): a reward manager that passes on the images, and a reward function.

Manager: `reward.reward_manager.name=vlgenrm`. verl finds it by the entry point `verl.plugins` of this package wherever
both are installed; without it (`VERL_USE_EXTERNAL_PLUGINS=none`), `reward.reward_manager.source=importlib`,
`.module.path=pkg://vlgenrm_ray.adapters.verl` and `.name=JudgeRewardManager` are the same. Prompt and images come from
the sample's `raw_prompt`, or the images from its `multi_modal_data`.
Function: `reward.custom_reward_function.path=pkg://vlgenrm_ray.adapters.verl`. It receives no image: `extra_info` (or
`ground_truth`) is a label with `question` and `image` (`judge/label.py`). Without an image there, as in verl's own
geo3k rows, samples have no reward (`no_image`): use the manager.
verl cannot mask a sample: an item without a reward raises, see `rewards.py`. verl's own reward model
(`reward.reward_model.enable`) is another judge than the served one, and is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client, check_service
from vlgenrm_ray.adapters.inputs import build_score_input, decode_response, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.label import Label, read_label
from vlgenrm_ray.judge.wire import ScoreReply

NAME = "vlgenrm"
_MANAGERS = "verl.experimental.reward_loop.reward_manager"


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    token: str | None = None,
    reward_router_address: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Return the reward of one response, as a reward function. `url` and `token` may come from `reward_kwargs`."""
    _refuse_reward_model(reward_router_address)
    label = _label(extra_info, ground_truth)
    (reply,) = await async_judge_client(url, token).score([build_score_input(solution_str, label=label)])
    return _result(reply)


class JudgeRewardManager(optional_import(f"{_MANAGERS}.base:RewardManagerBase")):  # type: ignore[misc]
    """Reward manager of verl. The judge sees the images the policy saw."""

    def __init__(
        self, config: Any, tokenizer: Any, compute_score: Any = None, reward_router_address: Any = None, **_: Any
    ) -> None:
        # The base's constructor differs between versions, and nothing it sets up is used.
        self.config = config
        self.tokenizer = tokenizer
        _refuse_reward_model(reward_router_address)
        check_service()

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of the last sequence of one sample."""
        row = data[-1]
        ids = row.batch["responses"]
        length = int(row.batch["attention_mask"][-ids.shape[-1] :].sum())
        fields = row.non_tensor_batch
        truth = (fields.get("reward_model") or {}).get("ground_truth")
        label = _label(fields.get("extra_info"), truth)
        score_input = build_score_input(
            decode_response(self.tokenizer, ids[:length]),
            prompt=fields.get("raw_prompt"),
            images=sample_images(fields),
            label=label,
        )
        (reply,) = await async_judge_client().score([score_input])
        result = _result(reply)
        return {"reward_score": result["score"], "reward_extra_info": result}


def _refuse_reward_model(reward_router_address: Any) -> None:
    if reward_router_address is not None:
        raise ConfigError(
            "reward.reward_model.enable=True: verl has started a reward model of its own, which this adapter does not "
            "use; set it to False and serve the judge with `vlgenrm serve`, or use verl's own reward function for it"
        )


def _label(extra_info: Mapping[str, Any] | None, ground_truth: Any) -> Label:
    """Read the label of `extra_info`, completed by the ground truth; a plain ground truth is the reference."""
    truth, extra = read_label(ground_truth), read_label(extra_info or None)
    return replace(
        truth,
        question=extra.question or truth.question,
        images=extra.images or truth.images,
        reference=extra.reference or truth.reference,
    )


def _result(reply: ScoreReply) -> dict[str, float]:
    # verl needs the same keys for all samples, and only numbers.
    return {
        "score": required_rewards([reply])[0],
        "verdict_mass": reply.verdict_mass,
        "scored": float(reply.reward is not None),
    }


def register() -> None:
    """Register the manager under its name; called when this module is imported and verl is installed."""
    decorator = optional_import(f"{_MANAGERS}:register", None)
    if decorator is not None:
        decorator(NAME)(JudgeRewardManager)


if __name__ == "vlgenrm_ray.adapters.verl":
    # verl executes a file that is named by its path once more, and the registry refuses a second class.
    register()
