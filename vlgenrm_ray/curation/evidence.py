"""The evidence from which preference pairs are built, for one image and for each of its questions.

EvidenceIndex      all findings and detections on one image; also checks texts that the experts stage never saw
EvidenceSummary    the findings on one text, grouped by truth
QuestionTopic      the kind of claim that answers a question
QuestionEvidence   the responses to one question with all of the above
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pydantic import Field

from vlgenrm_ray.curation.hard_negatives import Cooccurrence
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import claim_key, extract_claims
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch
from vlgenrm_ray.experts.lexicon import OPPOSITE_RELATIONS
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Box, CheckedResponse, Claim, ClaimKind, Finding, Origin, Preference, Truth
from vlgenrm_ray.settings import Settings


class EvidenceConfig(Settings):
    """Evidence that a pair requires."""

    min_score: float = Field(default=0.5, ge=0, le=1)
    """Findings with a lower confidence count as unknown."""
    max_unknown: int = Field(default=0, ge=0)
    """Most claims of a chosen response that may be unknown."""
    must_answer: bool = True
    """Require that a chosen or edited response makes a claim of the kind and about the subject of the question."""
    keep_unknown: bool = True
    """Keep an imported pair as it came if the experts know nothing about it; otherwise drop it."""


@dataclass(frozen=True, slots=True)
class RejectedPair:
    """A candidate pair that was rejected, with the reason."""

    reason: DropReason
    detail: str


@lru_cache(maxsize=8192)
def cached_claims(text: str, vocabulary: Vocabulary, question: str) -> tuple[Claim, ...]:
    """Extract the claims of an answer to a question. Cached: building pairs reads the same few texts many times."""
    return extract_claims(text, vocabulary, question)


@dataclass(frozen=True, slots=True)
class EvidenceSummary:
    """The findings on one text, grouped by truth."""

    supported: tuple[Finding, ...]
    contradicted: tuple[Finding, ...]
    unknown: tuple[Finding, ...]

    @classmethod
    def from_findings(cls, findings: Iterable[Finding], min_score: float) -> "EvidenceSummary":
        """Group findings by their truth value. A finding with a score below `min_score` counts as unknown."""
        groups: dict[Truth, list[Finding]] = {truth: [] for truth in Truth}
        for finding in findings:
            groups[finding.truth if finding.score >= min_score else Truth.UNKNOWN].append(finding)
        return cls(*(tuple(groups[truth]) for truth in (Truth.SUPPORTED, Truth.CONTRADICTED, Truth.UNKNOWN)))

    @property
    def is_fully_supported(self) -> bool:
        """True if there is at least one claim and every claim is supported."""
        return bool(self.supported) and not self.contradicted and not self.unknown

    @property
    def worst(self) -> Finding:
        """The most confident contradiction. Requires at least one."""
        return max(self.contradicted, key=lambda f: f.score)


class EvidenceIndex:
    """All evidence on one image, from its checked responses.

    Edited and repaired texts make claims that the experts stage did not check. They are decided by the detections, and
    by what the findings on other responses imply: a phrase that was found absent stays absent, a count that was
    supported excludes every other count.
    """

    def __init__(
        self,
        checked: Sequence[CheckedResponse],
        vocabulary: Vocabulary,
        thresholds: Thresholds,
        cooccurrence: Cooccurrence | None = None,
    ) -> None:
        """Index the evidence of `checked`: responses about one image, at least one.

        `cooccurrence` has the nouns that are detected together; None: wrong objects are drawn at random.
        """
        self.cooccurrence = cooccurrence
        self.vocabulary = vocabulary
        self.thresholds = thresholds
        findings = [finding for c in checked for finding in c.findings]
        self._definite = {claim_key(f.claim): f for f in findings if f.truth is not Truth.UNKNOWN}
        self._counts = {
            f.claim.subject: f
            for f in self._definite.values()
            if f.claim.kind is ClaimKind.COUNT and f.truth is Truth.SUPPORTED and not f.claim.negated
        }
        scores = {f.claim.subject: 1.0 - f.score for f in self._definite.values() if _states_absence(f)}
        self.absent_phrases = frozenset(scores)
        """Noun phrases that the experts found nowhere in the image."""
        # Responses to questions about several images have no evidence.
        first = next((c for c in checked if not c.response.question.more_images), checked[0])
        detections = first.detections
        self.detected_words = frozenset(word for d in detections for word in (d.box.label, d.attribute) if word)
        """Nouns and attributes of the detections."""
        image = checked[0].response.question.image
        whole_image = Box(label="", score=1.0, x0=0.0, y0=0.0, x1=image.width, y1=image.height)
        windows = (WindowMatch(whole_image, scores),)
        twice = frozenset(first.nouns_searched_twice)
        self._evidence = ImageEvidence(image.width, image.height, detections, windows, twice)

    def check_text(self, text: str, question: str = "") -> tuple[Finding, ...]:
        """Return a finding on every claim of an answer to a question."""
        return tuple(self.check(claim) for claim in cached_claims(text, self.vocabulary, question))

    def check(self, claim: Claim) -> Finding:
        """Return a finding on one claim."""
        if (finding := self._definite.get(claim_key(claim))) is not None:
            return replace(finding, claim=claim)
        count = self._counts.get(claim.subject)
        if claim.kind is ClaimKind.COUNT and count is not None and not claim.hedged:
            is_same = count.claim.value == claim.value
            truth = Truth.SUPPORTED if is_same != claim.negated else Truth.CONTRADICTED
            return replace(count, claim=claim, truth=truth)
        return check_claim(claim, self._evidence, self.vocabulary, self.thresholds)


def _states_absence(finding: Finding) -> bool:
    claim = finding.claim
    if claim.kind is ClaimKind.EXISTENCE:
        return (finding.truth is Truth.CONTRADICTED) != claim.negated
    is_zero = claim.kind is ClaimKind.COUNT and claim.value == "0" and not claim.negated
    return is_zero and finding.truth is Truth.SUPPORTED


# -- the question ------------------------------------------------------------------------------------------------------

_COUNT = re.compile(r"\bhow many\b")
_EXISTENCE = re.compile(
    r"^(?:is|are) there\b|^(?:do|can) you see\b|^does the (?:image|picture|photo) (?:show|contain)\b"
)


@dataclass(frozen=True, slots=True)
class QuestionTopic:
    """Kind and subjects of the claims that answer a question. A true claim about anything else does not answer it."""

    kind: ClaimKind | None
    """None: every response counts as an answer."""
    subjects: tuple[str, ...]
    """Noun phrases of the question, in canonical words and its order."""
    relations: frozenset[str] = frozenset()
    """Relations of the question, with their opposites."""

    def answered_by(self, claims: Iterable[Claim]) -> bool:
        """Return True if any of the claims answers the question."""
        return any(not c.hedged and self._matches(c) for c in claims)

    def _matches(self, claim: Claim) -> bool:
        if self.kind is None:
            return True
        if claim.kind is not self.kind:
            return False
        if self.kind is ClaimKind.SPATIAL and len(self.subjects) == 2:
            return (claim.subject, claim.other) == self.subjects and claim.value in self.relations
        return claim.subject in self.subjects


@lru_cache(maxsize=4096)
def parse_question(question: str, vocabulary: Vocabulary) -> QuestionTopic:
    """Read the topic of a question, with the grammar of the claims and a few cue words. Cached."""
    text = " ".join(question.lower().split())
    # The grammar skips questions, because they state nothing. Read as a statement, one yields its noun phrases.
    claims = extract_claims(text.replace("?", "."), vocabulary)
    subjects = tuple(dict.fromkeys(s for c in claims for s in (c.subject, c.other) if s))
    if not subjects:
        return QuestionTopic(None, ())
    if _COUNT.search(text):
        return QuestionTopic(ClaimKind.COUNT, subjects)
    families = "|".join(re.escape(f) for family in vocabulary.attributes for f in _spellings(family))
    if families and re.search(rf"\b(?:what|which) (?:is the )?(?:{families})\b", text):
        return QuestionTopic(ClaimKind.ATTRIBUTE, subjects)
    relations = {
        canonical
        for canonical, synonyms in vocabulary.relations.items()
        if any(re.search(rf"\b{re.escape(name)}\b", text) for name in (canonical, *synonyms))
    }
    if relations:
        opposites = {OPPOSITE_RELATIONS[r] for r in relations if r in OPPOSITE_RELATIONS}
        return QuestionTopic(ClaimKind.SPATIAL, subjects, frozenset(relations | opposites))
    return QuestionTopic(ClaimKind.EXISTENCE if _EXISTENCE.search(text) else None, subjects)


def _spellings(family: str) -> tuple[str, ...]:
    """Return the British and the American spelling of a family's name ("colour", "color")."""
    return (family, family.replace("our", "or"))


# -- responses to one question -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResponseEvidence:
    """A checked response with the summary of its findings."""

    checked: CheckedResponse
    summary: EvidenceSummary
    answers_question: bool

    @property
    def id(self) -> str:
        return self.checked.id

    @property
    def text(self) -> str:
        return self.checked.response.text

    @property
    def is_complete(self) -> bool:
        """True unless the response was cut at the length limit."""
        return self.checked.response.finish != "length"


@dataclass(frozen=True, slots=True)
class QuestionEvidence:
    """All responses to one question, with the evidence on the image."""

    responses: tuple[ResponseEvidence, ...]
    """In the order of their ids."""
    index: EvidenceIndex
    topic: QuestionTopic
    config: EvidenceConfig
    seed: int

    @classmethod
    def from_responses(
        cls, checked: Sequence[CheckedResponse], index: EvidenceIndex, config: EvidenceConfig, seed: int
    ) -> "QuestionEvidence":
        """Summarise the checked responses to one question; at least one."""
        topic = parse_question(checked[0].response.question.text, index.vocabulary)
        responses = tuple(
            ResponseEvidence(
                c,
                EvidenceSummary.from_findings(c.findings, config.min_score),
                topic.answered_by(f.claim for f in c.findings),
            )
            for c in sorted(checked, key=lambda c: c.id)
        )
        return cls(responses, index, topic, config, seed)

    @property
    def question_id(self) -> str:
        return self.responses[0].checked.response.question.id

    @property
    def question_text(self) -> str:
        return self.responses[0].checked.response.question.text

    def summarise(self, text: str) -> EvidenceSummary:
        """Check a text that is not among the responses."""
        return EvidenceSummary.from_findings(self.index.check_text(text, self.question_text), self.config.min_score)

    def summarise_claims(self, claims: Iterable[Claim]) -> EvidenceSummary:
        """Check some claims of a text that is not among the responses."""
        return EvidenceSummary.from_findings(map(self.index.check, claims), self.config.min_score)

    def is_answer(self, claims: Iterable[Claim]) -> bool:
        """Return True if the claims answer the question, or if the configuration does not require it."""
        return not self.config.must_answer or self.topic.answered_by(claims)

    def text_is_answer(self, text: str) -> bool:
        """Return True if the claims of a text answer the question, see `is_answer`."""
        return self.is_answer(cached_claims(text, self.index.vocabulary, self.question_text))

    def can_be_chosen(self, response: ResponseEvidence) -> bool:
        """Return True if a response is good enough for the chosen side of a pair."""
        summary = response.summary
        is_supported = bool(summary.supported) and len(summary.unknown) <= self.config.max_unknown
        is_answer = response.answers_question or not self.config.must_answer
        return is_supported and not summary.contradicted and is_answer and response.is_complete

    def make_rng(self, purpose: str) -> random.Random:
        """Return a random generator that depends only on the seed, the question and the purpose."""
        return random.Random(f"{self.seed}/{self.question_id}/{purpose}")

    def make_pair(
        self, chosen: tuple[str, str], rejected: tuple[str, str], origin: Origin, kind: ClaimKind | str, evidence: str
    ) -> Preference:
        """Make a preference between two responses.

        Args:
            chosen: Id and text of the better response.
            rejected: Id and text of the worse response.
            origin: The way the pair was made.
            kind: Kind of the claim that tells them apart.
            evidence: One line that explains the label to a reader.

        Returns:
            The preference, without an id of its own: the stage numbers the pairs that remain.
        """
        first = self.responses[0].checked
        return Preference(
            id="",
            question=first.response.question,
            chosen=chosen[1],
            rejected=rejected[1],
            origin=origin,
            kind=str(kind),
            evidence=evidence,
            chosen_id=chosen[0],
            rejected_id=rejected[0],
            detections=first.detections,
            window_scores=first.window_scores,
            nouns_searched_twice=first.nouns_searched_twice,
        )


def format_finding(finding: Finding) -> str:
    """Return a finding in one line."""
    return f'"{finding.claim.text}" {finding.truth} by {finding.expert} ({finding.score:.2f})'
