"""Console summary of a policy's training."""

from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray.report import policy_summary

IDS = [f"q{i}" for i in range(40)]


def evaluation(step: int, right: int, measured: bool = True) -> dict[str, Any]:
    outcomes = {name: float(place < right) for place, name in enumerate(IDS)} if measured else {}
    return {
        "step": step,
        "held_out": right / 40,
        "value": right / 40 if measured else None,
        "num_measured": len(outcomes),
        "reward": right / 40,
        "num_rewarded": 40,
        "outcomes": outcomes,
        "blank_image_reward": None,
        "image_reward_gain": None,
        "warning": "",
    }


def summary(**over: Any) -> dict[str, Any]:
    best = {"first": evaluation(0, 20), "best": evaluation(30, 30), "last": evaluation(60, 28)}
    return {"steps": 60, "samples": 7680.0, "failed": 96.0, "stopped": "", "seconds": 300.4} | best | over


def test_the_lines_have_the_gain_and_its_interval() -> None:
    lines = list(policy_summary.summary_lines(summary(), Path("runs/a")))
    assert lines[0] == "60 steps, 7,680 samples, 1.2% without a reward, 300 s"
    assert lines[1] == "held-out measure 0.500 -> best 0.750 (step 30), last 0.700, 40 questions"
    assert lines[2].startswith("best over first: +0.250 (95 %: +0.1")
    assert lines[3].startswith("last over first: +0.200 (95 %: ")
    assert lines[4] == "held-out reward minus measure +0.000 -> last +0.000; exploited if it rises"
    assert lines[5] == "models: runs/a/policy/best and runs/a/policy/model (last), and curves.svg"
    assert len(lines) == 6
    assert max(map(len, lines)) <= 80


def test_the_interval_is_paired_by_question() -> None:
    gain = policy_summary.measure_gain(summary())
    assert gain is not None
    assert (gain.value, gain.num) == (0.25, 40)
    assert 0.1 < gain.low < 0.25 < gain.high < 0.45


def decoding(step: int, right: dict[str, int]) -> dict[str, Any]:
    outcomes = {name: {id: float(place < n) for place, id in enumerate(IDS)} for name, n in right.items()}
    return {"step": step, "k": 16, "num_questions": 40, "outcomes": outcomes} | {n: r / 40 for n, r in right.items()}


def test_every_way_of_decoding_is_listed_with_its_paired_gain() -> None:
    before = decoding(0, {"greedy": 24, "avg_at_k": 18, "maj_at_k": 24, "pass_at_k": 36})
    after = decoding(60, {"greedy": 24, "avg_at_k": 22, "maj_at_k": 25, "pass_at_k": 34})
    lines = list(policy_summary.summary_lines(summary(decoding=[before, after]), Path("runs/a")))
    at = lines.index("held-out measure by decoding, k = 16, 40 questions (gain: paired, 95 %)")
    assert lines[at + 1] == "  greedy     0.600 -> 0.600   +0.0 [+0.0, +0.0]"
    assert lines[at + 2].startswith("  avg_at_k   0.450 -> 0.550  +10.0 [")
    assert lines[at + 4].startswith("  pass_at_k  0.900 -> 0.850   -5.0 [")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("measured", [True, False])
def test_without_a_measure_the_held_out_reward_has_no_interval(measured: bool) -> None:
    names = ("first", "best", "last")
    lines = list(policy_summary.summary_lines(summary(**{n: evaluation(0, 20, measured) for n in names}), Path("a")))
    assert any("paired" in line for line in lines) is measured
    assert lines[1].startswith("held-out measure" if measured else "held-out reward 0.500 -> best 0.500")


def test_an_early_stop_is_shown_with_its_reason() -> None:
    assert "stopped early: reward hacking" in policy_summary.summary_lines(summary(stopped="reward hacking"), Path("a"))


def test_the_contribution_of_the_image_is_shown_with_the_warning() -> None:
    seen = {"image_reward_gain": 0.3, "blank_image_reward": 0.4}
    blind = {
        "image_reward_gain": 0.004,
        "blank_image_reward": 0.8,
        "warning": "the judge may ignore the image: step 20",
    }
    lines = list(
        policy_summary.summary_lines(
            summary(first=evaluation(0, 20) | seen, last=evaluation(60, 28) | blind), Path("a")
        )
    )
    assert lines[-3] == "the image adds +0.300 -> last +0.004 to the judge's reward (blank: 0.800)"
    assert lines[-2] == "warning: the judge may ignore the image: step 20"
