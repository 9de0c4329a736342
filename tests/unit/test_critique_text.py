"""Reading a critique: where its verdict ends, what it says of the image, and whether evidence refutes that."""

import factories
import pytest

from vlgenrm_ray.evidence.checking import Bands
from vlgenrm_ray.reward.critique_text import Step, cut_after_verdict, steps
from vlgenrm_ray.reward.refutation import Evidence

EVIDENCE = Evidence.of("shapes", Bands())


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Claim: x.\nVerdict: Yes", "Claim: x.\nVerdict: Yes"),
        ("Verdict: Right.\nVerdict: Yes", None),
        ("Verdict: Yes, but the verdict was hard.", "Verdict: Yes"),
        ("**Verdict:** Yes**\n", "**Verdict:** Yes"),
        ("verdict : no.", "verdict : no"),
        ("Verdict: Nothing", None),
        ("Verdict:", None),
        ("Yes", None),
    ],
)
def test_a_critique_ends_with_its_one_verdict(text: str, cut: str | None) -> None:
    assert cut_after_verdict(text) == cut


def test_a_step_is_a_claim_what_the_image_shows_and_what_the_claim_is_called() -> None:
    text = (
        "Claim: a red circle at the top left. Image: a blue star at the top left. Wrong.\n"
        "Claim: there are no dogs. Image: a dog on the right, two cats. Right.\n"
        "- **Claim:** x. **Image:** nothing at the right\n"
        "Claim: y. Image: a cup. Wrong. Verdict: No\n"
        "Image: a spoon."
    )
    assert steps(text) == (
        Step("a red circle at the top left", "a blue star at the top left", False),
        Step("there are no dogs", "a dog on the right, two cats", True),
        Step("x", "nothing at the right", None),
        Step("y", "a cup", False),
        Step("", "a spoon", None),
    )


@pytest.mark.parametrize(
    ("said", "refuted"),
    [
        ("Claim: a blue star at the top left. Image: a red circle at the top left. Wrong.", False),
        ("Claim: a red circle at the top left. Image: a blue star at the top left. Wrong.", True),
        ("Claim: there are two circles. Image: no circles. Wrong.", True),
        # One detector that missed it is no proof of absence: that takes both experts.
        ("Claim: there is a green star. Image: a green star at the bottom right. Right.", False),
        # The experts saw the red circle: to call it wrong is as false as to see something else.
        ("Claim: a red circle at the top left. Image: something. Wrong.", True),
        ("Claim: a red circle at the top left. Image: something. Right.", False),
        ("Claim: a blue star at the top left. Image: something. Right.", True),
        ("Claim: a blue star at the top left. Image: something. Wrong.", False),
        ("Claim: a blue star at the top left. Image: something.", False),
        ("The picture is lovely.", False),
    ],
)
def test_a_critique_is_refuted_by_its_own_false_steps_only(said: str, refuted: bool) -> None:
    preference = factories.preference(sightings=(factories.sighting(),))
    assert EVIDENCE.refutes(factories.critique(preference=preference, text=f"{said}\nVerdict: Yes")) is refuted


def test_nothing_seen_refutes_nothing() -> None:
    text = "Claim: x. Image: a red circle at the top left. Right.\nVerdict: Yes"
    assert not EVIDENCE.refutes(factories.critique(preference=factories.preference(sightings=()), text=text))
