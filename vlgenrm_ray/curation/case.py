"""One question's responses with all that is known of them, from which pairs are made."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from vlgenrm_ray.curation.asked import Asked, asked
from vlgenrm_ray.curation.balance import BalanceConfig
from vlgenrm_ray.curation.witness import Standing, Witness
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import CheckedResponse, ClaimKind, Finding, Origin, Preference
from vlgenrm_ray.settings import Settings


class EvidenceConfig(Settings):
    """How much evidence a pair takes."""

    min_score: float = Field(default=0.5, ge=0, le=1)
    """Findings the experts are less sure of count as unknown."""
    max_unknown: int = Field(default=0, ge=0)
    """Claims of a chosen response that the experts may leave open."""
    must_answer: bool = True
    """A chosen or edited response must make a claim of the kind asked about what is asked; see `asked`."""
    keep_unknown: bool = True
    """An imported pair that the experts know nothing of is kept as it came, otherwise dropped."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A pair that could have been, and why it is not."""

    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A response with its standing."""

    checked: CheckedResponse
    standing: Standing
    answers: bool

    @property
    def id(self) -> str:
        return self.checked.id

    @property
    def text(self) -> str:
        return self.checked.response.text

    @property
    def is_whole(self) -> bool:
        """It was not cut at the length limit, so it may stand as an example."""
        return self.checked.response.finish != "length"


@dataclass(frozen=True, slots=True)
class Case:
    """All responses to one question, with the witness of its image."""

    responses: tuple[Judged, ...]
    witness: Witness
    asked: Asked
    config: EvidenceConfig
    balance: BalanceConfig
    seed: int

    @classmethod
    def of(
        cls,
        checked: Sequence[CheckedResponse],
        witness: Witness,
        config: EvidenceConfig,
        balance: BalanceConfig,
        seed: int,
    ) -> "Case":
        """The case of one question's responses; at least one."""
        about = asked(checked[0].response.question.text, witness.vocabulary)
        judged = tuple(
            Judged(c, Standing.of(c.findings, config.min_score), about.answered_by(f.claim for f in c.findings))
            for c in sorted(checked, key=lambda c: c.id)
        )
        return cls(judged, witness, about, config, balance, seed)

    def standing(self, text: str) -> Standing:
        """How a text nobody has checked stands."""
        return Standing.of(self.witness.findings(text), self.config.min_score)

    def answers(self, text: str) -> bool:
        """Whether a text nobody has checked may pass as an answer."""
        return self.is_answer(self.asked.answered_by(f.claim for f in self.witness.findings(text)))

    def can_be_chosen(self, judged: Judged) -> bool:
        """Whether a response is good enough to be preferred."""
        standing = judged.standing
        enough = bool(standing.supported) and len(standing.unknown) <= self.config.max_unknown
        return enough and not standing.contradicted and self.is_answer(judged.answers) and judged.is_whole

    def is_answer(self, answers: bool) -> bool:
        """Whether it may pass as an answer, as the configuration wants it."""
        return answers or not self.config.must_answer

    def chance(self, use: str) -> random.Random:
        """The source of chance of one use: the same whenever this question is worked on."""
        return random.Random(f"{self.seed}/{self.responses[0].checked.response.question.id}/{use}")

    def pair(
        self, chosen: tuple[str, str], rejected: tuple[str, str], origin: Origin, kind: ClaimKind | str, evidence: str
    ) -> Preference:
        """A preference between two (id, text); its own id is given later."""
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
        )


def told(finding: Finding) -> str:
    """A finding in one line."""
    return f'"{finding.claim.text}" {finding.truth} by {finding.expert} ({finding.score:.2f})'
