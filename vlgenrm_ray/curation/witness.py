"""What the experts know of one image, asked about texts that nobody had them check.

An edited or repaired response makes claims that were not among those checked. They are judged by the detections, and by
what the findings on other responses imply: a phrase once found absent is absent, a number once found right is right.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import claim_key, extract_claims
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Box, CheckedResponse, Claim, ClaimKind, Finding, Truth


@dataclass(frozen=True, slots=True)
class Standing:
    """How a response stands against the evidence: its findings, sorted by what they say."""

    supported: tuple[Finding, ...]
    contradicted: tuple[Finding, ...]
    unknown: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding], min_score: float) -> "Standing":
        """Findings below `min_score` count as unknown."""
        sorted_: dict[Truth, list[Finding]] = {truth: [] for truth in Truth}
        for finding in findings:
            sorted_[finding.truth if finding.score >= min_score else Truth.UNKNOWN].append(finding)
        return cls(*(tuple(sorted_[t]) for t in (Truth.SUPPORTED, Truth.CONTRADICTED, Truth.UNKNOWN)))

    @property
    def is_sound(self) -> bool:
        """Everything it claims is supported, and it claims something."""
        return bool(self.supported) and not self.contradicted and not self.unknown

    @property
    def worst(self) -> Finding:
        """The finding that most surely contradicts it. There must be one."""
        return max(self.contradicted, key=lambda f: f.score)


@lru_cache(maxsize=8192)
def claims_of(text: str, vocabulary: Vocabulary) -> tuple[Claim, ...]:
    """The claims of a text, remembered: while pairs are made the same few texts are read again and again."""
    return extract_claims(text, vocabulary)


class Witness:
    """The evidence on one image, from all its checked responses."""

    def __init__(self, checked: Sequence[CheckedResponse], vocabulary: Vocabulary, thresholds: Thresholds) -> None:
        """`checked`: responses of one image, at least one."""
        self.vocabulary = vocabulary
        self.thresholds = thresholds
        findings = [finding for c in checked for finding in c.findings]
        self._known = {claim_key(f.claim): f for f in findings if f.truth is not Truth.UNKNOWN}
        self._counts = {
            f.claim.subject: f
            for f in self._known.values()
            if f.claim.kind is ClaimKind.COUNT and f.truth is Truth.SUPPORTED and not f.claim.negated
        }
        image = checked[0].response.question.image
        whole = Box(label="", score=1.0, x0=0.0, y0=0.0, x1=image.width, y1=image.height)
        self.absent = frozenset(f.claim.subject for f in self._known.values() if _says_absent(f))
        """Noun phrases that the experts found nowhere in the image."""
        unlikely = {f.claim.subject: 1.0 - f.score for f in self._known.values() if _says_absent(f)}
        self.seen = frozenset(word for s in checked[0].detections for word in (s.box.label, s.attribute) if word)
        """Nouns and attributes that the experts saw."""
        self._view = ImageEvidence(image.width, image.height, checked[0].detections, (WindowMatch(whole, unlikely),))

    def findings(self, text: str) -> tuple[Finding, ...]:
        """What the experts say of every claim in a text."""
        return tuple(self.finding(claim) for claim in claims_of(text, self.vocabulary))

    def finding(self, claim: Claim) -> Finding:
        """What the experts say of one claim."""
        if (known := self._known.get(claim_key(claim))) is not None:
            return replace(known, claim=claim)
        count = self._counts.get(claim.subject)
        if claim.kind is ClaimKind.COUNT and count is not None and not claim.hedged:
            is_same = count.claim.value == claim.value
            return replace(
                count, claim=claim, truth=Truth.SUPPORTED if is_same != claim.negated else Truth.CONTRADICTED
            )
        return check_claim(claim, self._view, self.vocabulary, self.thresholds)


def _says_absent(finding: Finding) -> bool:
    claim = finding.claim
    if claim.kind is ClaimKind.EXISTENCE:
        return (finding.truth is Truth.CONTRADICTED) != claim.negated
    zero = claim.kind is ClaimKind.COUNT and claim.value == "0" and not claim.negated
    return zero and finding.truth is Truth.SUPPORTED
