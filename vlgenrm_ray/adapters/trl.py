"""TRL's GRPO and RLOO (1.10 to 1.16): `GRPOTrainer(reward_funcs=vlgenrm_reward)`, or
`trl grpo --reward_funcs vlgenrm_ray.adapters.trl.vlgenrm_reward`.

Images are those of the prompts' messages, else of the data set's column `image` (one) or `images` (a list). A column
`reference` is the reference.
An item without a reward is None, and TRL masks the sample. A service that cannot be reached raises, after retries.
"""

from collections.abc import Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client, judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, sample_images
from vlgenrm_ray.adapters.rewards import optional_rewards
from vlgenrm_ray.judge.label import Label, reference_text
from vlgenrm_ray.judge.protocol import ScoreInput


def vlgenrm_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return one reward per completion, None for a completion without one. A reward function of TRL."""
    replies = judge_client().score(_score_inputs(prompts, completions, columns))
    _log(columns, [reply.verdict_mass for reply in replies])
    return optional_rewards(replies)


async def vlgenrm_reward_async(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float | None]:
    """Asynchronous form of `vlgenrm_reward`: TRL runs it concurrently with other asynchronous reward functions."""
    replies = await async_judge_client().score(_score_inputs(prompts, completions, columns))
    _log(columns, [reply.verdict_mass for reply in replies])
    return optional_rewards(replies)


def _score_inputs(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[ScoreInput]:
    references = columns.get("reference") or [None] * len(completions)
    return [
        build_score_input(
            completions[row],
            prompt=prompts[row],
            images=sample_images(
                {name: columns[name][row] for name in ("images", "image") if columns.get(name) is not None}
            ),
            label=Label(reference=reference_text(references[row])),
        )
        for row in range(len(completions))
    ]


def _log(columns: dict[str, Any], verdict_masses: list[float]) -> None:
    if verdict_masses and (log_metric := columns.get("log_metric")) is not None:
        log_metric("vlgenrm/verdict_mass", sum(verdict_masses) / len(verdict_masses))
