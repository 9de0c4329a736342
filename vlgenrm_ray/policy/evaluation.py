"""Metrics of a held-out evaluation: the reward, an independent measure, and the effect of blank images."""

import math
from typing import Any

from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy.rollouts import RolloutBatch
from vlgenrm_ray.rewards.function import load_function
from vlgenrm_ray.rewards.image_ablation import ablation_metrics


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
        StageError: The measure returned a value that is not a finite number.
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
    function = load_function(measure)
    outcomes: dict[str, float] = {}
    for answer in answers:
        # A failed generation is not an answer: its value is unknown, not 0.
        if not answer.ids:
            continue
        value = function(answer.question, answer.text)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise StageError(
                f"evaluation.measure {measure!r} returned {value!r} for {answer.id}; it must be a finite number or None"
            )
        outcomes[answer.question.id] = float(value)
    mean = sum(outcomes.values()) / len(outcomes) if outcomes else None
    return metrics | {"value": mean, "num_measured": len(outcomes), "outcomes": outcomes}
