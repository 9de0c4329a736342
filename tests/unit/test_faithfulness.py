"""Faithfulness of critiques to the claims of their response."""

from pathlib import Path

import pytest

from vlgenrm_ray.experts.claims import VocabularyExtractor
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.rewards.critique_checks import is_faithful
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.world import scene_of

EXTRACTOR = VocabularyExtractor(load_vocabulary("shapes"))
RESPONSE = "There is a red circle at the top left. There is a blue star at the centre."
CIRCLE = "Claim: a red circle at the top left. Image: a red circle at the top left. Right."
STAR = "Claim: a blue star at the centre. Image: a blue star at the centre. Right."
NO_STAR = "Claim: a blue star at the centre. Image: a green star at the centre. Wrong."
OTHER = "Claim: a blue star at the top right. Image: nothing at the top right. Wrong."


def faithful(steps: list[str], verdict: str, response: str = RESPONSE) -> bool:
    text = "\n".join([*steps, f"Verdict: {verdict.capitalize()}"])
    return is_faithful(text, response, EXTRACTOR, approves=verdict == "yes")


@pytest.mark.parametrize(
    ("steps", "verdict", "expected"),
    [
        ([CIRCLE, STAR], "yes", True),
        ([STAR, CIRCLE], "yes", True),
        ([CIRCLE], "yes", False),
        ([], "yes", False),
        (["Claim: the image is as it is. Image: fine. Right."], "yes", False),
        ([CIRCLE, NO_STAR], "yes", False),
        ([CIRCLE, STAR, OTHER], "yes", False),
        ([CIRCLE, NO_STAR], "no", True),
        # One wrong claim decides; the others need not be read.
        ([NO_STAR], "no", True),
        ([CIRCLE], "no", False),
        ([OTHER], "no", False),
        # Every claim is right, but the response does not answer the question.
        ([CIRCLE, STAR], "no", True),
    ],
)
def test_the_verdict_must_follow_from_the_claims_of_the_response(
    steps: list[str], verdict: str, expected: bool
) -> None:
    assert faithful(steps, verdict) is expected


def test_every_critique_of_a_response_without_claims_passes() -> None:
    assert faithful(["Claim: it is lovely. Image: it is. Right."], "yes", response="It is lovely.")


def test_a_hedged_claim_of_the_response_may_be_quoted_or_left_out() -> None:
    response = f"{RESPONSE} In the serene middle, one sees a green square."
    square = "Claim: a green square. Image: a green square at the centre. Right."
    assert faithful([CIRCLE, STAR], "yes", response)
    assert faithful([CIRCLE, STAR, square], "yes", response)
    assert not faithful([CIRCLE, STAR, square], "yes", RESPONSE)


def test_a_perfect_judge_is_faithful(tmp_path: Path) -> None:
    for pair in gold_pairs(tmp_path, seed=3, split="train", count=100):
        scene = scene_of(pair.question.id)
        for response, verdict in ((pair.chosen, "yes"), (pair.rejected, "no")):
            text = reference_critique(scene, pair.question.text, response)
            assert text.endswith(f"Verdict: {verdict.capitalize()}")
            assert is_faithful(text, response, EXTRACTOR, approves=verdict == "yes"), (response, text)
