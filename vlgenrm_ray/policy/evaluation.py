"""Metrics of a held-out evaluation: the reward, an independent measure, and the effect of blank images."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy.rollouts import RolloutBatch
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.function import NO_REWARD, FunctionReward, load_function
from vlgenrm_ray.rewards.image_ablation import ablation_metrics
from vlgenrm_ray.rewards.reward import RewardOutput

_MEASURE_S_PER_ANSWER = 2.0
_MIN_MEASURE_S = 300.0
_log = logging.getLogger(__name__)


def evaluation_metrics(batch: RolloutBatch, measure: str) -> dict[str, Any]:
    """Compute the metrics of one evaluation.

    Args:
        batch: One answer per held-out question, with its reward.
        measure: `module:function` of (Question, response) -> float or None; empty: no measure.

    Returns:
        `reward`: mean over the `num_rewarded` answers that have one; `value`: mean of the measure over the
        `num_measured` answers it accepts, None without one; `outcomes`: value by question id; `length`: mean tokens;
        `blank_image_reward` and `image_reward_gain`, see `ablation_metrics`.

    Raises:
        ConfigError: `measure` names no function.
        StageError: The measure failed on every answer, or returned no finite number for any.
    """
    answers = [group[0] for group in batch.groups]
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    metrics: dict[str, Any] = {
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "num_rewarded": len(rewards),
        "length": sum(len(answer.ids) for answer in answers) / len(answers) if answers else 0.0,
        "value": None,
        "num_measured": 0,
        "outcomes": {},
        **ablation_metrics(batch.ablations),
    }
    if not measure:
        return metrics
    outcomes = _measure(answers, measure)
    mean = sum(outcomes.values()) / len(outcomes) if outcomes else None
    return metrics | {"value": mean, "num_measured": len(outcomes), "outcomes": outcomes}


def _measure(answers: Sequence[Rollout], measure: str) -> dict[str, float]:
    """Return the value of each answer that the measure accepts, by question id.

    An answer on which the measure fails is logged and left out: its value is unknown, and it must not end the run.
    """
    # A failed generation is not an answer: its value is unknown, not 0.
    generated = [answer for answer in answers if answer.ids]
    outputs = asyncio.run(_call_measure(generated, measure))
    values, failures = {}, []
    for answer, output in zip(generated, outputs, strict=True):
        if output.reward is not None:
            values[answer.question.id] = output.reward
        elif output.status != NO_REWARD:
            failures.append(f"{output.detail.removeprefix('the function ')} for {answer.id}")
    if failures:
        problem = f"evaluation.measure {measure!r} {failures[0]}; it must be a finite number or None"
        if not values:
            raise StageError(problem)
        _log.warning("%d of %d answers have no value: %s", len(failures), len(generated), problem)
    return values


async def _call_measure(answers: Sequence[Rollout], measure: str) -> list[RewardOutput]:
    deadline_s = max(_MIN_MEASURE_S, _MEASURE_S_PER_ANSWER * len(answers))
    function = FunctionReward(load_function(measure), deadline_s)
    try:
        return await function.score(answers)
    finally:
        await function.close()
