"""Metrics of held-out evaluations: the reward, an independent measure, blank images, and ways of decoding."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy.rollouts import DecodingBatch, RolloutBatch
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.function import NO_REWARD, FunctionReward, load_function
from vlgenrm_ray.rewards.image_ablation import ablation_metrics
from vlgenrm_ray.rewards.reward import RewardOutput

DECODINGS = ("greedy", "avg_at_k", "maj_at_k", "pass_at_k")
"""Ways to turn a policy into one answer, or one value, per question."""
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
    values = zip(answers, _measure(answers, measure), strict=True)
    outcomes = {answer.question.id: value for answer, value in values if value is not None}
    mean = sum(outcomes.values()) / len(outcomes) if outcomes else None
    return metrics | {"value": mean, "num_measured": len(outcomes), "outcomes": outcomes}


def pair_metrics(preferred: Mapping[str, float], *, is_measure: bool) -> dict[str, Any]:
    """Compute the metrics of held-out preference pairs.

    Args:
        preferred: 1 by question id if the policy prefers the chosen response, 0 if not, 0.5 for a tie.
        is_measure: The run has no other measure: the share is its `value` too.

    Returns:
        `pair_accuracy`, None without pairs, and `num_pairs`; as a measure also `value`, `num_measured` and `outcomes`.
    """
    accuracy = sum(preferred.values()) / len(preferred) if preferred else None
    metrics: dict[str, Any] = {"pair_accuracy": accuracy, "num_pairs": len(preferred)}
    if is_measure:
        metrics |= {"value": accuracy, "num_measured": len(preferred), "outcomes": dict(preferred)}
    return metrics


def decoding_metrics(batch: DecodingBatch, measure: str) -> dict[str, Any]:
    """Compare greedy decoding with k samples at temperature 1, on the same questions.

    Training can make a policy more certain without making it better: then `avg_at_k` rises towards `maj_at_k`, and
    `greedy` stays. A gain of a policy is its gain in `greedy`.

    Args:
        batch: One greedy and k sampled answers per question.
        measure: `module:function` of (Question, response) -> float or None.

    Returns:
        `k`, the number `num_questions`, the means `greedy`, `avg_at_k` (of a sample), `maj_at_k` (of the most frequent
        answer; the first sampled one on a tie) and `pass_at_k` (of the best sample), and `outcomes`: each of these by
        question id. Questions with an answer that has no value are left out.

    Raises:
        ConfigError: `measure` names no function.
        StageError: The measure failed on every answer.
    """
    groups = [(greedy[0], *sampled) for greedy, sampled in zip(batch.greedy, batch.sampled, strict=True)]
    answers = [answer for group in groups for answer in group]
    values = iter(_measure(answers, measure))
    outcomes: dict[str, dict[str, float]] = {name: {} for name in DECODINGS}
    for group in groups:
        group_values = [next(values) for _ in group]
        if None in group_values:
            continue
        greedy, *sampled = (value for value in group_values if value is not None)
        question = group[0].question.id
        outcomes["greedy"][question] = greedy
        outcomes["avg_at_k"][question] = sum(sampled) / len(sampled)
        outcomes["maj_at_k"][question] = sampled[_majority([answer.text for answer in group[1:]])]
        outcomes["pass_at_k"][question] = max(sampled)
    num_questions = len(outcomes["greedy"])
    means = {name: sum(by_id.values()) / num_questions if num_questions else None for name, by_id in outcomes.items()}
    k = len(batch.sampled[0]) if batch.sampled else 0
    return {"k": k, "num_questions": num_questions, **means, "outcomes": outcomes}


def _majority(texts: Sequence[str]) -> int:
    """Return the index of the first text that is as frequent as the most frequent one; case and spaces do not count."""
    answers = [" ".join(text.casefold().split()) for text in texts]
    counts = Counter(answers)
    return max(range(len(answers)), key=lambda index: (counts[answers[index]], -index))


def _measure(answers: Sequence[Rollout], measure: str) -> list[float | None]:
    """Return the value of each answer; None where the measure accepts it not, or there is no answer.

    An answer on which the measure fails is logged and has no value: it is unknown, and it must not end the run.
    """
    # A failed generation is not an answer: its value is unknown, not 0.
    generated = [answer for answer in answers if answer.ids]
    outputs = iter(asyncio.run(_call_measure(generated, measure)))
    values: list[float | None] = []
    failures = []
    for answer in answers:
        output = next(outputs) if answer.ids else None
        values.append(output.reward if output is not None else None)
        if output is not None and output.reward is None and output.status != NO_REWARD:
            failures.append(f"{output.detail.removeprefix('the function ')} for {answer.id}")
    if failures:
        problem = f"evaluation.measure {measure!r} {failures[0]}; it must be a finite number or None"
        if all(value is None for value in values):
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
