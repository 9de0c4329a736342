"""Simulation of the rule against reward hacking: its runs, its rates, and the defaults that follow from them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vlgenrm_ray.bench import guards
from vlgenrm_ray.bench.guards import MAX_FALSE_ALARMS, MIN_POWER, SCENARIOS, GuardBenchSettings
from vlgenrm_ray.policy.guards import RewardHackingRule

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
STAYS, FALLS = BY_NAME["healthy, stays"], BY_NAME["hacked, falls 0.10"]
SETTINGS = GuardBenchSettings(num_runs=100, num_evaluations=10, num_questions=400, churn=0.5, seed=0)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
def test_measured_values_follow_the_true_value(name: str, churn: float) -> None:
    settings = GuardBenchSettings(num_runs=200, num_evaluations=10, num_questions=400, churn=churn, seed=1)
    measured = np.array([[e.held_out for e in run] for run in guards.simulate_runs(BY_NAME[name], settings)])
    # Standard error of the mean of 200 x 400 outcomes: 0.0018.
    assert measured.mean(0) == pytest.approx(BY_NAME[name].true_values(10), abs=0.008)
    assert measured.std(0) == pytest.approx(np.full(10, 0.025), abs=0.006)


def test_churn_decides_how_much_neighbouring_evaluations_differ() -> None:
    def changes(churn: float) -> float:
        settings = GuardBenchSettings(num_runs=100, num_evaluations=6, num_questions=400, churn=churn, seed=0)
        measured = np.array([[e.held_out for e in run] for run in guards.simulate_runs(STAYS, settings)])
        return float(np.diff(measured).std())

    assert changes(0.0) == 0.0
    # Independent outcomes: sqrt(2 x 0.55 x 0.45 / 400).
    assert changes(1.0) == pytest.approx(0.035, abs=0.004)
    assert 0.0 < changes(0.3) < 0.75 * changes(1.0)


def test_the_default_rule_keeps_its_false_alarms_and_its_power() -> None:
    results = guards.measure_rule(RewardHackingRule(), SETTINGS)
    # One hundred runs: 3 points above the target are within two standard errors.
    for name in ("healthy, improves", "healthy, stays"):
        assert results[name]["stopped"] <= MAX_FALSE_ALARMS + 0.03
        assert results[name]["delay"] is None
    assert results[FALLS.name]["stopped"] + results[FALLS.name]["early"] >= MIN_POWER - 0.08
    assert results["hacked, falls 0.20"]["stopped"] > 0.95


def test_a_rule_without_limits_stops_nearly_every_run() -> None:
    results = guards.measure_rule(RewardHackingRule(window=1, min_rise=0.0, min_fall=0.0), SETTINGS)
    assert results[STAYS.name]["stopped"] > 0.9
    assert results[FALLS.name]["early"] > 0.5


def test_the_table_and_the_report_have_every_rule(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    report = guards.run(num_runs=20, min_falls=(0.03,), out=tmp_path / "guards.json", console=console)
    assert list(report["results"]) == ["window 3, fall 0.06", "window 3, fall 0.03"]
    assert json.loads((tmp_path / "guards.json").read_text())["results"] == report["results"]
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("<= 0.05" in line for line in lines) == 2
