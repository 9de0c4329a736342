"""Precision and recall of verdicts, and accuracy of labels, against values worked by hand."""

import factories

from vlgenrm_ray.evaluation.evidence_quality import expert_quality, label_quality
from vlgenrm_ray.records import CheckedResponse, Claim, ClaimKind, Finding, Origin, Question, Truth


def finding(truth: Truth, subject: str, **over: object) -> Finding:
    return Finding(claim=factories.claim(subject=subject, **over), truth=truth, expert="detector", score=0.9)


def claim_truth(question: Question, claim: Claim) -> bool:
    return claim.subject.startswith("true")


def response_truth(question: Question, text: str) -> bool:
    return text.startswith("true")


def test_unknown_lowers_recall_and_not_precision() -> None:
    findings = (
        finding(Truth.SUPPORTED, "true a"),
        finding(Truth.SUPPORTED, "true b"),
        finding(Truth.SUPPORTED, "false c"),
        finding(Truth.UNKNOWN, "true d"),
        finding(Truth.CONTRADICTED, "false e"),
        finding(Truth.SUPPORTED, "false hedged", hedged=True),
        finding(Truth.CONTRADICTED, "true f", kind=ClaimKind.COUNT, value="2"),
    )
    quality = expert_quality(
        [CheckedResponse(id="q0/r0", response=factories.response(), findings=findings)], claim_truth
    )
    existence = quality["existence"]
    assert existence["claims"] == 5
    assert existence["unknown_share"] == 0.2
    assert existence["supported"]["precision"]["value"] == round(2 / 3, 6)
    assert existence["supported"]["recall"]["value"] == round(2 / 3, 6)
    assert existence["contradicted"]["precision"] | {"ci95": None} == {"value": 1.0, "ci95": None, "num": 1}
    assert existence["contradicted"]["recall"]["value"] == 0.5
    assert quality["count"]["contradicted"]["precision"]["value"] == 0.0
    assert quality["count"]["contradicted"]["recall"]["value"] is None
    assert quality["all"]["claims"] == 6


def test_a_label_is_right_if_both_sides_are() -> None:
    texts = [("true", "false"), ("true", "true"), ("false", "false"), ("true", "false")]
    origins = [Origin.EDITED, Origin.EDITED, Origin.EDITED, Origin.VERIFIED]
    pairs = [
        factories.preference(f"q/p{i}", chosen=c, rejected=r, origin=origin)
        for i, ((c, r), origin) in enumerate(zip(texts, origins, strict=True))
    ]
    quality = label_quality(pairs, response_truth)
    assert quality["edited"]["label_accuracy"]["value"] == round(1 / 3, 6)
    assert quality["edited"]["chosen_true"]["value"] == round(2 / 3, 6)
    assert quality["edited"]["rejected_false"]["value"] == round(2 / 3, 6)
    assert quality["verified"]["label_accuracy"]["num"] == 1
    assert quality["all"]["label_accuracy"]["value"] == 0.5
