"""Sentences that state a claim, and claims that contrast with one, for experts that take language."""

from collections.abc import Iterator
from dataclasses import replace

from vlgenrm_ray.experts.lexicon import OPPOSITE_RELATIONS
from vlgenrm_ray.experts.vocabulary import Vocabulary, with_article
from vlgenrm_ray.records import Claim, ClaimKind


def state_claim(claim: Claim, vocabulary: Vocabulary) -> str:
    """Return a claim, as if it were not negated, as a sentence: "the dog is left of the red car"."""
    if claim.kind is ClaimKind.EXISTENCE:
        return f"there is {with_article(claim.subject)} in the image"
    if claim.kind is ClaimKind.COUNT:
        is_one = claim.value == "1"
        noun = claim.subject if is_one else vocabulary.plural(claim.subject)
        return f"the number of {noun} in the image is {claim.value}"
    if claim.kind is ClaimKind.ATTRIBUTE:
        return f"the {claim.subject} is {claim.value}"
    if claim.kind is ClaimKind.TEXT:
        return f'the {claim.subject} in the image says "{claim.value}"'
    if claim.other:
        return f"the {claim.subject} is {claim.value} the {claim.other}"
    return f"there is {with_article(claim.subject)} at the {claim.value} of the image"


def contrasting_claims(claim: Claim, vocabulary: Vocabulary) -> Iterator[Claim]:
    """Yield the claims that cannot be true together with a claim: other colours, the opposite relation."""
    if claim.kind is ClaimKind.ATTRIBUTE:
        for word in vocabulary.attributes.get(_family(claim, vocabulary), ()):
            if word != claim.value:
                yield replace(claim, value=word)
    elif claim.other and claim.value in OPPOSITE_RELATIONS:
        yield replace(claim, value=OPPOSITE_RELATIONS[claim.value])


def _family(claim: Claim, vocabulary: Vocabulary) -> str:
    return next((name for name, words in vocabulary.attributes.items() if claim.value in words), "")
