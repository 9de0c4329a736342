"""The critique a perfect judge would write of a response: claim by claim, then the verdict.

Claim: a red circle at the top left. Image: a red circle at the top left. Right.
Claim: a blue square at the centre. Image: a blue star at the centre. Wrong.
Verdict: No
"""

from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes.phrases import listed, placed
from vlgenrm_ray.shapes.scenes import CELLS, Scene
from vlgenrm_ray.shapes.truth import about, claims, holds, parse


def critique(scene: Scene, question: str, response: str) -> str:
    """The reference critique; its verdict is Yes exactly where `truth.is_true` says so.

    Raises ValueError for a question or response outside the world's language.
    """
    made = claims(response)
    if not made:
        raise ValueError(f"not a response in the embedded world's language: {response!r}")
    kind, subject, other = parse(question)
    clauses: dict[int, list[Claim]] = {}
    for claim in made:
        clauses.setdefault(claim.start, []).append(claim)
    lines = []
    verdict = any(about(kind, subject, other, claim) for claim in made)
    for clause in clauses.values():
        right = all(holds(scene, claim) for claim in clause)
        verdict = verdict and right
        lines.append(f"Claim: {_claimed(clause)}. Image: {_seen(scene, clause)}. {'Right' if right else 'Wrong'}.")
    return "\n".join([*lines, f"Verdict: {verdict_word(verdict)}"])


def verdict_word(right: bool) -> str:
    """The word that stands for a verdict."""
    return "Yes" if right else "No"


def _claimed(clause: list[Claim]) -> str:
    """The clause as the critique repeats it: "there is a red circle at the ..." loses its first two words."""
    text = clause[0].text.lower()
    return text.removeprefix("there is ") if len(clause) == 2 else text


def _seen(scene: Scene, clause: list[Claim]) -> str:
    """What the image really holds where the clause looks."""
    claim = clause[-1]
    things = scene.matching(claim.subject)
    if claim.kind == ClaimKind.SPATIAL and not claim.other:
        cell = CELLS.index(claim.value)
        there = scene.at(cell)
        return placed(there.name, cell) if there else f"nothing at the {claim.value}"
    if claim.kind == ClaimKind.SPATIAL:
        others = scene.matching(claim.other)
        return f"{listed(things, f'no {claim.subject}')}, {listed(others, f'no {claim.other}')}"
    return listed(things, f"no {claim.subject}s" if claim.kind == ClaimKind.COUNT else f"no {claim.subject}")
