"""Aggregate metrics of NeMo Gym's rollouts, as a resources server answers them at `POST /aggregate_metrics`.

The names and formulae are those of `nemo_gym.reward_profile.compute_aggregate_metrics` (NeMo Gym 0.7.0), which needs
pandas, wandb and Gym itself. Masked samples count for the coverage only, since their reward measures nothing.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlgenrm_ray.errors import InputError

Row = Mapping[str, Any]

TASK, REPEAT = "_ng_task_index", "_ng_rollout_index"
"""Columns that identify a rollout: its task, and its number among the rollouts of the task."""
MASK = "mask_sample"
_TOO_LARGE = 1e150
_TOKEN_COLUMNS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")


def aggregate_metrics(rollouts: Sequence[Row]) -> dict[str, Any]:
    """Compute the reply to `POST /aggregate_metrics`.

    Args:
        rollouts: Replies of `/verify` with `_ng_task_index` and `_ng_rollout_index`, 0 if missing.

    Returns:
        Gym's `AggregateMetrics`: statistics of every numeric column over all rollouts (`agent_metrics`, `key_metrics`),
        per task (`group_level_metrics`) and per repeat (`repeat_level_metrics`), and the `perf_summary`, if any.

    Raises:
        InputError: An index is not an integer, or two rollouts have the same indices.
    """
    reply: dict[str, Any] = {
        "group_level_metrics": [],
        "agent_metrics": {},
        "key_metrics": {},
        "perf_summary": _perf_summary(rollouts),
        "repeat_level_metrics": [],
    }
    if not rollouts:
        return reply
    _check_indices(rollouts)
    scored = [rollout for rollout in rollouts if not rollout.get(MASK)]
    coverage = _coverage(rollouts, scored)
    if not scored:
        return reply | {"agent_metrics": coverage, "key_metrics": dict(coverage)}
    columns = [_numbers(rollout) for rollout in scored]
    repeats = _repeats(scored, columns)
    agent = _describe(columns) | _across_repeats(repeats) | coverage
    agent["num_repeats"] = len({_index(rollout, REPEAT) for rollout in rollouts})
    key_metrics = {name: value for name, value in agent.items() if name.startswith("mean/")} | coverage
    return reply | {
        "group_level_metrics": _tasks(scored, columns),
        "agent_metrics": agent,
        "key_metrics": key_metrics,
        "repeat_level_metrics": repeats,
    }


def _check_indices(rollouts: Sequence[Row]) -> None:
    seen = set()
    for place, rollout in enumerate(rollouts):
        for name in (TASK, REPEAT):
            if type(_index(rollout, name)) is not int:
                raise InputError(f"verify_responses[{place}].{name}: must be an integer")
        key = (_index(rollout, TASK), _index(rollout, REPEAT))
        if key in seen:
            raise InputError(f"verify_responses[{place}]: a second rollout of task {key[0]} with index {key[1]}")
        seen.add(key)


def _index(rollout: Row, name: str) -> Any:
    return rollout.get(name, 0)


def _numbers(rollout: Row) -> dict[str, float]:
    """Return the numeric columns of a rollout, and those of its response's usage."""
    response = rollout.get("response")
    usage = response.get("usage") if isinstance(response, Mapping) else None
    values = {**rollout, **(usage if isinstance(usage, Mapping) else {})}
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in values.items()
        if not name.startswith("_") and name != MASK and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and not so large that its square is none."""
    return isinstance(value, int | float) and abs(value) < _TOO_LARGE


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return the values of each column, without gaps."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _describe(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return mean, extremes, median and standard deviation (n - 1) of every column."""
    columns = _columns(rows)
    metrics: dict[str, Any] = {}
    has_deviation = any(len(values) > 1 for values in columns.values())
    for name, values in columns.items():
        metrics |= {
            f"mean/{name}": statistics.fmean(values),
            f"max/{name}": max(values),
            f"min/{name}": min(values),
            f"median/{name}": statistics.median(values),
        }
        if len(values) > 1:
            metrics[f"std/{name}"] = _deviation(values)
        elif not has_deviation and len(values) == len(rows):
            metrics[f"std/{name}"] = 0.0
    return metrics


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _tasks(scored: Sequence[Row], columns: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the statistics of each task."""
    groups: list[dict[str, Any]] = []
    for task in sorted({_index(rollout, TASK) for rollout in scored}):
        places = [place for place, rollout in enumerate(scored) if _index(rollout, TASK) == task]
        infos = [
            {"rollout_id": f"{task}:{(repeat := _index(scored[i], REPEAT))}", TASK: task, REPEAT: repeat, **columns[i]}
            for i in sorted(places, key=lambda i: _index(scored[i], REPEAT))
        ]
        groups.append(
            {
                TASK: task,
                **_describe([columns[i] for i in places]),
                "sample": {"agent_ref": {"name": "agent"}},
                "num_rollouts": len(places),
                "expected_num_rollouts": len(places),
                "missing_num_rollouts": 0,
                "reward_profile_completion_pct": 100.0,
                "rollout_infos": infos,
            }
        )
    return groups


def _repeats(scored: Sequence[Row], columns: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the statistics of each repeat over the tasks; nothing for a single repeat."""
    numbers = sorted({_index(rollout, REPEAT) for rollout in scored})
    if len(numbers) < 2:
        return []
    num_tasks = len({_index(rollout, TASK) for rollout in scored})
    repeats = []
    for number in numbers:
        rows = [row for rollout, row in zip(scored, columns, strict=True) if _index(rollout, REPEAT) == number]
        entry: dict[str, Any] = {REPEAT: number, "sample_count": len(rows), "missing_count": num_tasks - len(rows)}
        for name, values in sorted(_columns(rows).items()):
            entry |= {
                f"mean/{name}": statistics.fmean(values),
                f"median/{name}": statistics.median(values),
                f"std/{name}": _deviation(values),
                f"sem/{name}": _standard_error(values),
                f"min/{name}": min(values),
                f"max/{name}": max(values),
                f"p25/{name}": float(np.quantile(values, 0.25)),
                f"p75/{name}": float(np.quantile(values, 0.75)),
            }
            if interval := _interval(values):
                entry[f"ci_low_95/{name}"], entry[f"ci_high_95/{name}"] = interval
        repeats.append(entry)
    return repeats


def _across_repeats(repeats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return statistics of the repeats' means, one observation per repeat."""
    metrics: dict[str, Any] = {}
    means = ({name: value for name, value in entry.items() if name.startswith("mean/")} for entry in repeats)
    for name, values in _columns(means).items():
        metrics |= {
            f"mean_across_repeats/{name}": statistics.fmean(values),
            f"median_across_repeats/{name}": statistics.median(values),
            f"std_across_repeats/{name}": _deviation(values),
            f"min_across_repeats/{name}": min(values),
            f"max_across_repeats/{name}": max(values),
            f"se_across_repeats/{name}": _standard_error(values),
        }
        if interval := _interval(values):
            low, high = interval
            metrics |= {f"ci_low_95_across_repeats/{name}": low, f"ci_high_95_across_repeats/{name}": high}
    return metrics


def _standard_error(values: Sequence[float]) -> float:
    return _deviation(values) / math.sqrt(len(values))


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean (Student's t), or None for a single value."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), _standard_error(values)
    if error == 0:
        return mean, mean
    from scipy import stats

    low, high = stats.t.interval(0.95, df=len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def _coverage(rollouts: Sequence[Row], scored: Sequence[Row]) -> dict[str, Any]:
    """Return how many rollouts and tasks the statistics are of; nothing if no sample is masked."""
    if len(scored) == len(rollouts):
        return {}
    measured = {_index(rollout, TASK) for rollout in scored}
    return {
        "coverage/measured_rollouts": len(scored),
        "coverage/masked_rollouts": len(rollouts) - len(scored),
        "coverage/measured_tasks": len(measured),
        "coverage/fully_masked_tasks": len({_index(rollout, TASK) for rollout in rollouts} - measured),
    }


def _perf_summary(rollouts: Sequence[Row]) -> dict[str, Any] | None:
    """Summarize the `ng_perf` records of rollouts; None without any."""
    records = [rollout["ng_perf"] for rollout in rollouts if isinstance(rollout.get("ng_perf"), Mapping)]
    if not records:
        return None

    def values(name: str) -> list[float]:
        return [record[name] for record in records if _is_number(record.get(name))]

    summary: dict[str, Any] = {
        "overall_observability_coverage": len(records) / len(rollouts),
        "token_observability_coverage": sum(v > 0 for v in values("token_observability_coverage")) / len(rollouts),
    }
    for name in _TOKEN_COLUMNS:
        if numbers := values(name):
            summary |= {
                f"mean_{name}": statistics.fmean(numbers),
                f"median_{name}": statistics.median(numbers),
                f"total_{name}": sum(numbers),
            }
    if turns := values("num_turns"):
        summary |= {
            "mean_num_turns": statistics.fmean(turns),
            "median_num_turns": statistics.median(turns),
            "std_num_turns": statistics.pstdev(turns),
            "min_num_turns": min(turns),
            "p90_num_turns": float(np.quantile(turns, 0.9)),
            "max_num_turns": max(turns),
        }
    ratios = [
        record["completion_tokens"] / record["num_turns"]
        for record in records
        if all(_is_number(record.get(name)) for name in ("completion_tokens", "num_turns")) and record["num_turns"] > 0
    ]
    if ratios:
        summary |= {
            "mean_tokens_per_turn": statistics.fmean(ratios),
            "median_tokens_per_turn": statistics.median(ratios),
        }
    if latencies := values("total_latency_ms"):
        summary |= {f"total_latency_p{q}_ms": float(np.quantile(latencies, q / 100)) for q in (50, 90, 99)}
        summary["total_latency_mean_ms"] = statistics.fmean(latencies)
    return summary
