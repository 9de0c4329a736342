"""What a question asks about, read from its text, so that a true remark about something else is no answer.

Read with the claims' own grammar and a few cues. Where they tell nothing, every response counts as an answer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from vlgenrm_ray.curation.edits import OPPOSITE
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.vocabulary import Vocabulary
from vlgenrm_ray.records import Claim, ClaimKind

_COUNT = re.compile(r"\bhow many\b")
_EXISTENCE = re.compile(
    r"^(?:is|are) there\b|^(?:do|can) you see\b|^does the (?:image|picture|photo) (?:show|contain)\b"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """The kind of claim a question wants, and of what. `kind` None: anything said of the image is an answer."""

    kind: ClaimKind | None
    subjects: tuple[str, ...]
    """Noun phrases the question names, in canonical words and its order."""
    relations: frozenset[str] = frozenset()
    """Relations it names, with their opposites."""

    def answered_by(self, claims: Iterable[Claim]) -> bool:
        """Whether any of the claims is of the kind asked and about what is asked."""
        return any(not c.hedged and self._meets(c) for c in claims)

    def _meets(self, claim: Claim) -> bool:
        if self.kind is None:
            return True
        if claim.kind is not self.kind:
            return False
        if self.kind is ClaimKind.SPATIAL and len(self.subjects) == 2:
            return (claim.subject, claim.other) == self.subjects and claim.value in self.relations
        return claim.subject in self.subjects


@lru_cache(maxsize=4096)
def asked(question: str, vocabulary: Vocabulary) -> Asked:
    """What a question asks about."""
    text = " ".join(question.lower().split())
    # The grammar passes over questions, as they state nothing; as a statement it names what they are about.
    named = extract_claims(text.replace("?", "."), vocabulary)
    subjects = tuple(dict.fromkeys(s for c in named for s in (c.subject, c.other) if s))
    if not subjects:
        return Asked(None, ())
    if _COUNT.search(text):
        return Asked(ClaimKind.COUNT, subjects)
    families = "|".join(re.escape(f) for family in vocabulary.attributes for f in _spellings(family))
    if families and re.search(rf"\b(?:what|which) (?:is the )?(?:{families})\b", text):
        return Asked(ClaimKind.ATTRIBUTE, subjects)
    relations = {
        canonical
        for canonical, synonyms in vocabulary.relations.items()
        if any(re.search(rf"\b{re.escape(name)}\b", text) for name in (canonical, *synonyms))
    }
    if relations:
        opposites = {OPPOSITE[r] for r in relations if r in OPPOSITE}
        return Asked(ClaimKind.SPATIAL, subjects, frozenset(relations | opposites))
    return Asked(ClaimKind.EXISTENCE if _EXISTENCE.search(text) else None, subjects)


def _spellings(family: str) -> tuple[str, ...]:
    """A family's name as both sides of the Atlantic write it."""
    return (family, family.replace("our", "or"))
