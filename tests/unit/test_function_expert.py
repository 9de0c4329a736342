"""A user's function as an expert: in a process of its own, whatever it does."""

import sys

import PIL.Image
import pytest

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.function import FunctionExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.records import Finding, Truth

CONFIG = ExpertsConfig(detector=DetectorConfig(model="none"))
PACKAGE = """
import os
import time


def verify(image, claim):
    noun = claim.subject
    if noun == "dog":
        return True
    if noun == "cat":
        return False
    if noun == "car":
        return 0.97
    if noun == "bus":
        return 0.6
    if noun == "bird":
        raise ValueError("no birds")
    if noun == "cow":
        os._exit(3)
    if noun == "horse":
        time.sleep(60)
    if noun == "cup":
        return "yes"
    if noun == "fork":
        return float("nan")
    if noun == "bowl":
        return image.getpixel((0, 0)) == (255, 0, 0)
    return None
"""


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Import path of a function in a temporary package, which child processes find as well."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "user_verifier.py").write_text(PACKAGE)
    sys.path.insert(0, str(folder))
    return "user_verifier:verify"


def findings(expert: FunctionExpert, text: str) -> list[Finding]:
    return list(ExpertPipeline(CONFIG, [expert]).report(PIL.Image.new("RGB", (8, 8), "red"), [text]).findings[0])


def test_what_the_function_returns_decides_and_failures_cost_their_claim_alone(function: str) -> None:
    nouns = ("dog", "cat", "car", "bus", "bird", "cow", "horse", "cup", "fork", "bowl", "kite", "dog")
    expert = FunctionExpert(CONFIG, function=function, timeout_s=1.5)
    try:
        results = findings(expert, " ".join(f"There is a {noun}." for noun in nouns))
    finally:
        expert.close()
    truths = dict(zip(nouns, [finding.truth for finding in results], strict=True))
    definite = {noun: truth for noun, truth in truths.items() if truth is not Truth.UNKNOWN}
    assert definite == {
        "dog": Truth.SUPPORTED,
        "cat": Truth.CONTRADICTED,
        "car": Truth.SUPPORTED,
        "bowl": Truth.SUPPORTED,
    }
    assert {finding.expert for finding in results if finding.truth is not Truth.UNKNOWN} == {"function"}


def test_hedged_claims_and_other_kinds_are_not_passed_on(function: str) -> None:
    expert = FunctionExpert(CONFIG, function=function, kinds=["count"])
    try:
        assert [f.truth for f in findings(expert, "There is a dog. Perhaps there are two dogs.")] == [Truth.UNKNOWN] * 2
        assert findings(expert, "There are two dogs.")[0].truth is Truth.SUPPORTED
    finally:
        expert.close()


def test_a_function_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match=r"function 'no_such_module:verify': ModuleNotFoundError"):
        FunctionExpert(CONFIG, function="no_such_module:verify")
    with pytest.raises(ConfigError, match=r"function\.kinds: 'colour' is unknown"):
        FunctionExpert(CONFIG, function="json:loads", kinds=["colour"])
