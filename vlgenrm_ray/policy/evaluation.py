"""Answers to held-out questions -> what they are worth, by the reward and by a measure it never saw."""

import math
from typing import Any

from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy import sight
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.function_reward import load


def measured(collected: Collected, measure: str) -> dict[str, Any]:
    """Figures of one evaluation.

    `reward`: mean over the answers that have one, `rewarded` of them; `value`: mean of the function named `measure`
    over the answers it takes, `num` of them, None without one; `outcomes`: its value by question id; `length`: mean
    tokens; and what `sight.figures` has. Raises ConfigError for a name that is no function, StageError where it gives
    what is no finite number.
    """
    answers = [group[0] for group in collected.groups]
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    found: dict[str, Any] = {
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "rewarded": len(rewards),
        "length": sum(len(answer.ids) for answer in answers) / len(answers) if answers else 0.0,
        "value": None,
        "num": 0,
        "outcomes": {},
        **sight.figures(collected.looks),
    }
    if not measure:
        return found
    function = load(measure)
    outcomes: dict[str, float] = {}
    for answer in answers:
        # One that was never written is no answer, and worth nothing known.
        if not answer.ids:
            continue
        value = function(answer.question, answer.text)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise StageError(
                f"evaluation.measure {measure!r} gave {value!r} for {answer.id}; it must be a finite number"
            )
        outcomes[answer.question.id] = float(value)
    mean = sum(outcomes.values()) / len(outcomes) if outcomes else None
    return found | {"value": mean, "num": len(outcomes), "outcomes": outcomes}
