"""Calibration of a judge's rewards on labelled pairs: a reward of 0.8 should be right in 80 % of the responses.

    calibrated reward = sigmoid((logit(r) - b) / T)

Temperature T and bias b are fitted by logistic regression of the label on logit(r) (Platt 1999): of both sides of each
pair, the chosen one is labelled 1. A judge that is too sure has T > 1, one that says Yes too often b > 0. The function
is monotone, so rankings, accuracies and AUROC stay as they are; only the values of rewards change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.metrics import Array, brier, ece, reward_arrays
from vlgenrm_ray.judge.verdict import calibrate_reward, reward_logit
from vlgenrm_ray.records import PairResult

MIN_PAIRS = 40
"""Fewest readable pairs that a calibration is fitted on."""
_MAX_LOGIT = 15.0
"""Log-odds are cut off here for the fit, so that a few extreme rewards do not decide it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCalibration:
    """A fitted calibration, with its quality on pairs that were not fitted."""

    temperature: float
    bias: float
    num_pairs: int
    ece_before: float
    """Expected calibration error of the rewards as they are."""
    ece_after: float
    """The same of calibrated rewards, each half of the pairs calibrated by a fit on the other half."""
    brier_before: float
    brier_after: float

    def as_json(self) -> dict[str, Any]:
        """Return the values for `judge.json`, rounded."""
        names = ("ece_before", "ece_after", "brier_before", "brier_after")
        return {"num_pairs": self.num_pairs} | {name: round(getattr(self, name), 4) for name in names}


def calibrate(results: Sequence[PairResult]) -> RewardCalibration:
    """Fit a calibration on judged pairs with image, whose rewards are not calibrated yet.

    Raises:
        InputError: There are too few readable pairs, or the rewards do not agree with the labels.
    """
    chosen, rejected = reward_arrays(sorted(results, key=lambda result: result.preference_id))
    is_readable = ~np.isnan(chosen - rejected)
    chosen, rejected = chosen[is_readable], rejected[is_readable]
    if len(chosen) < MIN_PAIRS:
        raise InputError(f"{len(chosen)} readable pairs; a calibration needs {MIN_PAIRS}: judge more labelled pairs")
    temperature, bias = fit(chosen, rejected)
    rewards, label = np.concatenate([chosen, rejected]), _labels(chosen, rejected)
    calibrated = np.empty_like(rewards)
    # By pair, as both sides of one pair depend on each other.
    fold = np.tile(np.arange(len(chosen)) % 2, 2)
    for number in (0, 1):
        others = fold[: len(chosen)] != number
        fitted = fit(chosen[others], rejected[others])
        calibrated[fold == number] = [calibrate_reward(float(r), *fitted) for r in rewards[fold == number]]
    return RewardCalibration(
        temperature=temperature,
        bias=bias,
        num_pairs=len(chosen),
        ece_before=ece(rewards, label),
        ece_after=ece(calibrated, label),
        brier_before=brier(rewards, label),
        brier_after=brier(calibrated, label),
    )


def fit(chosen: Array, rejected: Array) -> tuple[float, float]:
    """Fit temperature and bias on the rewards (N,) of both sides of N pairs.

    Raises:
        InputError: Higher rewards do not go with better responses.
    """
    from sklearn.linear_model import LogisticRegression

    rewards = np.concatenate([chosen, rejected])
    logits = np.clip([reward_logit(float(reward)) for reward in rewards], -_MAX_LOGIT, _MAX_LOGIT)
    # Hardly any regularisation: there are two parameters.
    model = LogisticRegression(C=1e4).fit(logits[:, None], _labels(chosen, rejected))
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise InputError(
            "the judge's rewards do not agree with the labels of these pairs; there is nothing to calibrate"
        )
    return 1.0 / slope, -intercept / slope


def _labels(chosen: Array, rejected: Array) -> Array:
    return np.concatenate([np.ones(len(chosen)), np.zeros(len(rejected))])
