"""Calibration of rewards: what it fits, that it changes no ranking, and accuracy over coverage."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray import entrypoints
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.metrics import abstention_curve, judge_metrics
from vlgenrm_ray.evaluation.reward_calibration import RewardCalibration, calibrate, fit
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.model_settings import JudgeModelSettings, read_settings, write_settings
from vlgenrm_ray.judge.verdict import calibrate_reward
from vlgenrm_ray.records import Judgement, PairResult
from vlgenrm_ray.shapes import pack_path

NAN = math.nan


def judgement(reward: float | None) -> Judgement:
    return Judgement(id="j", reward=reward, status="unreadable_verdict" if reward is None else "ok")


def judged(num: int, *, temperature: float = 1.0, bias: float = 0.0, seed: int = 0) -> list[PairResult]:
    """Pairs of a judge whose log-odds are `temperature` times the true ones, plus `bias`."""
    rng = np.random.default_rng(seed)
    # Log-odds of two normal distributions with equal variance are calibrated: N(+-2, 4).
    chosen, rejected = rng.normal(2.0, 2.0, num), rng.normal(-2.0, 2.0, num)

    def reward(logit: float) -> float:
        return float(1 / (1 + np.exp(-(temperature * logit + bias))))

    return [
        PairResult(id=f"{i}", preference_id=f"{i}", kind="", chosen=judgement(reward(c)), rejected=judgement(reward(r)))
        for i, (c, r) in enumerate(zip(chosen, rejected, strict=True))
    ]


def recalibrated(results: list[PairResult], calibration: RewardCalibration) -> list[PairResult]:
    def change(before: Judgement) -> Judgement:
        assert before.reward is not None
        return replace(before, reward=calibrate_reward(before.reward, calibration.temperature, calibration.bias))

    return [replace(r, chosen=change(r.chosen), rejected=change(r.rejected)) for r in results]


@pytest.mark.parametrize(("temperature", "bias"), [(3.0, 0.0), (0.4, 0.0), (1.0, 1.5), (2.5, -2.0)])
def test_the_calibration_undoes_overconfidence_and_bias(temperature: float, bias: float) -> None:
    calibration = calibrate(judged(3000, temperature=temperature, bias=bias))
    assert calibration.temperature == pytest.approx(temperature, rel=0.1)
    assert calibration.bias == pytest.approx(bias, abs=0.25)
    assert calibration.ece_before > 0.05
    assert calibration.ece_after < 0.03
    assert calibration.brier_after < calibration.brier_before


def test_other_pairs_are_calibrated_and_their_ranking_stays() -> None:
    calibration = calibrate(judged(1000, temperature=3.0, bias=1.0))
    others = judged(1000, temperature=3.0, bias=1.0, seed=1)
    before, after = judge_metrics(others), judge_metrics(recalibrated(others, calibration))
    assert after["pairwise_accuracy"] == before["pairwise_accuracy"]
    assert after["by_kind"] == before["by_kind"]
    assert after["auroc"] == before["auroc"]
    assert before["ece"] > 0.1
    assert after["ece"] <= 0.05


rewards = st.floats(0.0, 1.0)


@given(rewards, rewards, st.floats(0.05, 50.0), st.floats(-10.0, 10.0))
def test_no_calibration_reverses_an_order(first: float, second: float, temperature: float, bias: float) -> None:
    low, high = sorted((first, second))
    calibrated = [calibrate_reward(reward, temperature, bias) for reward in (low, high)]
    assert 0.0 <= calibrated[0] <= calibrated[1] <= 1.0


@given(rewards)
def test_no_calibration_is_the_identity_and_one_half_stays(reward: float) -> None:
    assert calibrate_reward(reward, 1.0) == reward
    assert calibrate_reward(0.5, 7.0) == 0.5
    assert calibrate_reward(reward, 2.0, 0.0) == pytest.approx(1 - calibrate_reward(1 - reward, 2.0, 0.0), abs=1e-8)


def test_pairs_that_calibrate_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="39 readable pairs; a calibration needs 40"):
        calibrate(judged(39))
    swapped = [replace(r, chosen=r.rejected, rejected=r.chosen) for r in judged(200)]
    with pytest.raises(InputError, match="do not agree with the labels"):
        calibrate(swapped)


def test_unreadable_pairs_are_left_out_and_certain_rewards_are_finite() -> None:
    unread = replace(judged(1)[0], id="u", preference_id="u", chosen=judgement(None))
    assert calibrate([*judged(300), unread]).num_pairs == 300
    temperature, bias = fit(np.array([1.0, 1.0, 0.9, 0.0] * 20), np.array([0.0, 0.1, 0.0, 1.0] * 20))
    assert math.isfinite(temperature)
    assert math.isfinite(bias)


def test_accuracy_over_coverage_starts_with_the_surest_pairs() -> None:
    chosen = np.array([0.9, 0.6, 0.5, 0.4, NAN] * 2)
    rejected = np.array([0.1, 0.2, 0.5, 0.5, 0.9] * 2)
    curve = {row["coverage"]: row for row in abstention_curve(chosen, rejected)}
    assert curve[0.2]["accuracy"]["value"] == curve[0.4]["accuracy"]["value"] == 1.0
    assert curve[0.2]["margin"] == pytest.approx(0.8)
    # Two wrong pairs at margin 0.1, then two ties, then two unreadable ones: a half each.
    assert curve[0.6]["accuracy"]["value"] == pytest.approx(4 / 6, abs=1e-6)
    assert curve[1.0]["accuracy"]["value"] == pytest.approx((4 + 0 + 1 + 1) / 10)
    assert curve[1.0]["accuracy"]["num"] == 10
    assert abstention_curve(np.array([]), np.array([])) == []


def test_the_command_writes_the_fit_into_the_folder_and_replaces_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(pack_path("vlm"), model)
    write_settings(JudgeModelSettings(kind="discriminative", reward_temperature=9.0), model)
    judges: list[JudgeConfig] = []

    def judge_heldout(
        settings: RunConfig, judge: JudgeConfig, model: Path, model_name: str, run: Path, address: object
    ) -> StageFolder:
        judges.append(judge)
        stage = StageFolder(run / f"evaluation-{len(judges)}")
        stage.begin("x", {"preferences": "p"})
        units = [Unit(id=r.id, records=(r,)) for r in judged(300, temperature=2.0)]
        write_units(stage, PairResult, units)
        stage.finish(seconds=0.0)
        return stage

    monkeypatch.setattr(entrypoints, "_judge_heldout", judge_heldout)
    for _ in range(2):
        quality = entrypoints.calibrate(shipped_recipe("shapes_head"), model=str(model), run=tmp_path / "run")
        written = read_settings(model)
        assert written.kind == "discriminative"
        assert written.reward_temperature == pytest.approx(2.0, rel=0.2)
        assert written.calibration == {"pairs": "p", **quality}
    assert [(judge.is_discriminative, judge.reward_temperature) for judge in judges] == [(True, 1.0)] * 2
