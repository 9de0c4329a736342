"""Whether a critique goes through what its response claims: it may have the right verdict without having read it.

Margin alone does not tell: a judge may be as sure after a critique that passes over half of the claims.
"""

from vlgenrm_ray.experts.claims import ClaimExtractor, claim_key
from vlgenrm_ray.records import Critique
from vlgenrm_ray.reward.critique_text import steps


def is_faithful(critique: Critique, extractor: ClaimExtractor) -> bool:
    """Whether the critique repeats nothing but claims of the response, and its verdict follows from its steps.

    A Yes has to pass every claim and call none wrong; a No has to call one wrong, or pass every claim (the response may
    be true and no answer). A response without a claim that the extractor understands is held against no critique.
    """
    claimed = _said(extractor, critique.preference.response(critique.side))
    if not claimed:
        return True
    made = steps(critique.text)
    repeated = {step: _said(extractor, step.claim) for step in made}
    passed: set[tuple[object, ...]] = set().union(*repeated.values())
    if passed - claimed:
        return False
    wrong = any(step.right is False and said for step, said in repeated.items())
    complete = passed == claimed
    return complete and not wrong if critique.verdict == "yes" else complete or wrong


def _said(extractor: ClaimExtractor, text: str) -> set[tuple[object, ...]]:
    return {claim_key(claim) for claim in extractor.extract(text) if not claim.hedged}
