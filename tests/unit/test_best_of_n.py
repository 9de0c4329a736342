"""Best-of-N: the estimator against enumeration and simulation, and the benchmark on a small file by hand."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_files import ours, rules, score, write_lines
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.best_of_n import curve_sizes, expected_best, expected_pick, pick_probabilities

rewards_strategy = st.lists(st.none() | st.integers(0, 3).map(float), min_size=1, max_size=7)


def by_enumeration(rewards: list[float | None], scores: list[float], n: int) -> float:
    """Average over all subsets; ties are broken at random, candidates without a reward come last."""
    values = [-1.0 if reward is None else reward for reward in rewards]
    picks = []
    for subset in combinations(range(len(values)), n):
        top = max(values[i] for i in subset)
        picks.append(np.mean([scores[i] for i in subset if values[i] == top]))
    return float(np.mean(picks))


@given(rewards_strategy, st.data())
def test_the_estimate_is_the_average_over_all_subsets(rewards: list[float | None], data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(0, 5).map(float), min_size=len(rewards), max_size=len(rewards)))
    for n in range(1, len(rewards) + 1):
        assert expected_pick(rewards, scores, n) == pytest.approx(by_enumeration(rewards, scores, n))
        assert pick_probabilities(rewards, n).sum() == pytest.approx(1.0)
        assert expected_best(scores, n) == pytest.approx(
            np.mean([max(scores[i] for i in s) for s in combinations(range(len(scores)), n)])
        )
        assert expected_pick(rewards, scores, n) <= expected_best(scores, n) + 1e-9


@given(rewards_strategy, st.randoms())
def test_the_order_of_candidates_does_not_change_the_estimate(rewards: list[float | None], chance: Any) -> None:
    scores = [float(i) for i in range(len(rewards))]
    order = list(range(len(rewards)))
    chance.shuffle(order)
    for n in (1, len(rewards)):
        shuffled = expected_pick([rewards[i] for i in order], [scores[i] for i in order], n)
        assert shuffled == pytest.approx(expected_pick(rewards, scores, n))


def test_the_estimate_is_unbiased_for_n_independent_samples() -> None:
    # Rewards are noisy scores. From 16 candidates the estimate for n = 4 has the same mean as 4 fresh samples' pick.
    generator = np.random.default_rng(0)

    def sample(size: int) -> tuple[list[float], list[float]]:
        scores = generator.random(size)
        return (scores + generator.normal(0, 0.5, size)).tolist(), scores.tolist()

    estimates = [expected_pick(*sample(16), 4) for _ in range(2000)]
    fresh = []
    for _ in range(20_000):
        rewards, scores = sample(4)
        fresh.append(scores[int(np.argmax(rewards))])
    standard_error = np.hypot(np.std(estimates) / 2000**0.5, np.std(fresh) / 20_000**0.5)
    assert abs(np.mean(estimates) - np.mean(fresh)) < 4 * standard_error


def test_curves_go_up_to_64_by_powers_of_two() -> None:
    assert curve_sizes(1) == [1]
    assert curve_sizes(6) == [1, 2, 4, 6]
    assert curve_sizes(64) == curve_sizes(200) == [1, 2, 4, 8, 16, 32, 64]


def candidate_row(id: str, candidates: list[str], scores: list[float]) -> dict[str, Any]:
    return {"id": id, "image": f"{id}.jpg", "question": "What is it?", "candidates": candidates, "scores": scores}


def test_best_of_n_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    rows = [
        candidate_row("a", ["x", "yy", "zzz"], [1.0, 0.0, 0.0]),
        candidate_row("b", ["x", "yy"], [0.0, 1.0]),
    ]
    data = write_lines(tmp_path / "candidates.jsonl", rows)
    rewards = [{"id": "a", "rewards": [0.9, 0.5, None]}, {"id": "b", "rewards": [0.7, 0.7]}]
    result = score("best_of_n", data, write_lines(tmp_path / "rewards.jsonl", rewards))
    # n = 3: a alone, whose pick is right. n = 2: subsets of a: {x, y} and {x, z} pick x, {y, z} picks y: 2/3; b is a
    # tie: 1/2. n = 1: the mean score: 1/3 and 1/2.
    assert ours(result, "best of 3") == 1.0
    assert ours(result, "best of 2") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert ours(result, "best of 1") == pytest.approx((1 / 3 + 1 / 2) / 2)
    # The oracle finds the true one if it is in the subset: 2/3 and 1.
    assert rules(result, "best of 2") == pytest.approx({"oracle": (2 / 3 + 1) / 2, "random": (1 / 3 + 1 / 2) / 2})
    assert ours(result, "regret of 2") == pytest.approx(1 / 4)
    assert (ours(result, "longest of 3"), ours(result, "shortest of 3")) == (0.0, 1.0)
    assert result["counts"] == {"questions": 2, "candidates": 5, "fewest": 2, "unreadable": 1}
    assert result["main"] == "best of 3"


def test_candidates_and_scores_must_have_the_same_length(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "candidates.jsonl", [candidate_row("a", ["x"], [1.0, 0.0])])
    with pytest.raises(InputError, match="a has 1 candidates and 2 scores"):
        score("best_of_n", data, data)
    data = write_lines(tmp_path / "candidates.jsonl", [candidate_row("a", ["x", "y"], [1.0, 0.0])])
    answers = write_lines(tmp_path / "rewards.jsonl", [{"id": "a", "rewards": [1.0]}])
    with pytest.raises(InputError, match="a has 2 candidates; give a reward for each"):
        score("best_of_n", data, answers)
