"""Calibrations: fitted thresholds and weights of the experts, in a YAML file that a recipe names.

`experts.calibration: FILE` applies a calibration; its thresholds take precedence over those of the recipe.
"""

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.records import Box, Claim, ClaimKind, Truth
from vlgenrm_ray.settings import Settings


def verdict_kind(claim: Claim, truth: Truth) -> str:
    """Return the kind of a verdict: "count/supported", "relation/contradicted", ..."""
    kind = claim.kind.value
    if claim.kind is ClaimKind.SPATIAL:
        kind = "relation" if claim.other else "place"
    return f"{kind}/{truth.value}"


class NounThresholds(Settings):
    """Fitted limits for the boxes of one noun."""

    sure_box: float = Field(ge=0, le=1)
    """Score from which an object is sure."""
    absent_box: float = Field(ge=0, le=1)
    """Score below which a box is ignored."""
    both_miss: float = Field(ge=0, le=1)
    """Share of the absences found by two detectors that are wrong."""


class CalibratedThresholds(Thresholds):
    """Thresholds with fitted limits for each noun and kind of claim."""

    absent_box: float = Field(default=0.0, ge=0, le=1)
    """Score below which a box is ignored."""
    both_miss: float = Field(default=0.1, ge=0, le=1)
    """Share of the absences found by two detectors that are wrong."""
    nouns: dict[str, NounThresholds] = Field(default_factory=dict)
    """Limits of the nouns with enough labelled objects, in place of those for all."""
    min_scores: dict[str, float] = Field(default_factory=dict)
    """Kind of verdict ("count/supported", see `verdict_kind`) -> confidence that it requires; others require none."""

    def is_sure(self, box: Box) -> bool:
        """See `Thresholds`."""
        return box.score >= self._of(box.label).sure_box

    def counts(self, box: Box) -> bool:
        """See `Thresholds`."""
        return box.score >= self._of(box.label).absent_box

    def p_both_miss(self, noun: str) -> float:
        """See `Thresholds`."""
        return self._of(noun).both_miss

    def min_score(self, claim: Claim, truth: Truth) -> float:
        """See `Thresholds`."""
        return self.min_scores.get(verdict_kind(claim, truth), 0.0)

    @field_validator("min_scores")
    @classmethod
    def _are_kinds(cls, min_scores: dict[str, float]) -> dict[str, float]:
        kinds = [*(kind.value for kind in ClaimKind if kind is not ClaimKind.SPATIAL), "place", "relation"]
        known = {f"{kind}/{truth}" for kind in kinds for truth in (Truth.SUPPORTED, Truth.CONTRADICTED)}
        if unknown := sorted(set(min_scores) - known):
            raise ValueError(f"{unknown[0]!r} is no kind of verdict; choose from {', '.join(sorted(known))}")
        return min_scores

    def _of(self, noun: str) -> "NounThresholds | CalibratedThresholds":
        return self.nouns.get(noun, self)


class FusionConfig(Settings):
    """Score of an object for two detectors: logit(p) = offset + sum of weight_i x logit(score_i).

    With the defaults a box that both detectors see is surer than either, and one that a single detector sees is only
    possible.
    """

    weights: tuple[float, float] = (0.7, 0.7)
    """Weights of the two detectors' scores."""
    offset: float = 0.0
    """Constant of the combination."""
    floor: float = Field(default=0.1, gt=0, lt=1)
    """Score of a detector that finds no box; weaker boxes count as this."""


class Reliability(Settings):
    """Measured quality of one verdict on claims of one kind or noun, on images that were not fitted."""

    truth: str
    """`supported` or `contradicted`."""
    num: int
    """Verdicts of this kind."""
    right: float | None
    """Share of them that is right; None if there are none."""
    right_ci95: tuple[float, float] | None
    """Wilson interval of `right`, 95 %."""
    recall: float | None
    """Share of the true (supported) or false (contradicted) claims that get the verdict."""
    recall_ci95: tuple[float, float] | None
    """Wilson interval of `recall`, 95 %."""


class Calibration(Settings):
    """Content of a calibration file."""

    thresholds: CalibratedThresholds = CalibratedThresholds()
    """Thresholds that replace the recipe's."""
    fusion: FusionConfig = FusionConfig()
    """Weights of two detectors."""
    reliability: dict[str, tuple[Reliability, ...]] = Field(default_factory=dict)
    """Kind of claim, way of making questions, or noun -> quality of its verdicts on the held-out images."""
    source: dict[str, str | int | float] = Field(default_factory=dict)
    """Models, data, seed and numbers of images that it was fitted with."""


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as the YAML file that `load_calibration` reads."""
    content = calibration.model_dump(mode="json", exclude_defaults=True)
    header = "# Fitted by `vlgenrm experts calibrate`; a recipe applies it with `experts: {calibration: THIS FILE}`.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + yaml.safe_dump(content, sort_keys=False, width=110, default_flow_style=None))


@cache
def load_calibration(path: str) -> Calibration:
    """Read a calibration file; "" gives the defaults. Cached.

    Raises:
        InputError: The file cannot be read or is no calibration.
    """
    if not path:
        return Calibration()
    try:
        return Calibration.model_validate(yaml.safe_load(Path(path).read_text()))
    except OSError as error:
        raise InputError(
            f"experts.calibration: {path!r} cannot be read ({error.strerror}); "
            "`vlgenrm experts calibrate` writes such a file"
        ) from error
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"experts.calibration: {path!r} is no calibration: {error}") from error


def calibrated(thresholds: Thresholds, path: str) -> Thresholds:
    """Return thresholds with the values of a calibration file in their place; unchanged if the path is ""."""
    if not path:
        return thresholds
    fitted = load_calibration(path).thresholds.model_dump(exclude_unset=True)
    return CalibratedThresholds.model_validate(thresholds.model_dump() | fitted)
