"""Calibration on real photographs with real detectors: cross-validated over images. Needs VLGENRM_REAL_DATA.

The folder `detector` there holds one or two ONNX detectors of COCO's classes. Two decide absence as well.
"""

import os
from pathlib import Path

import pytest

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.experts.fitting import calibrate
from vlgenrm_ray.experts.label_claims import WAYS

pytestmark = pytest.mark.skipif("VLGENRM_REAL_DATA" not in os.environ, reason="VLGENRM_REAL_DATA is unset")


def test_calibrated_detectors_are_right_on_photographs_that_were_not_fitted() -> None:
    root = Path(os.environ["VLGENRM_REAL_DATA"])
    models = sorted((root / "detector").glob("*.onnx"))[:2]
    detectors = [DetectorConfig(model=str(model), image_size=416, min_score=0.05) for model in models]
    config = ExpertsConfig(detector=detectors[0], second_detector=detectors[1] if len(detectors) == 2 else None)
    calibration = calibrate(config, root / "photos" / "coco128_train", images=None, folds=5, seed=0, target=0.93)
    reliability = calibration.reliability
    supported, contradicted = reliability["existence"]
    assert supported.right is not None
    assert supported.recall is not None
    assert supported.right >= 0.90
    assert supported.recall >= 0.55
    for way in WAYS:
        assert (reliability[f"existence/{way}"][0].right or 0) >= 0.85
    if len(detectors) == 2:
        assert (contradicted.right or 0) >= 0.90
        assert (contradicted.recall or 0) >= 0.30
    else:
        assert contradicted.num == 0, "absence takes two experts"
