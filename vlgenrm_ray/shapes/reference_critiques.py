"""Reference critiques: what a perfect judge writes about a response, claim by claim, then the verdict.

Claim: a red circle at the top left. Image: a red circle at the top left. Right.
Claim: a blue square at the centre. Image: a blue star at the centre. Wrong.
Verdict: No
"""

from vlgenrm_ray.records import Claim, ClaimKind
from vlgenrm_ray.shapes.language import object_phrase, object_phrases
from vlgenrm_ray.shapes.scenes import CELLS, Scene
from vlgenrm_ray.shapes.truth import about, claims, holds, parse


def reference_critique(scene: Scene, question: str, response: str) -> str:
    """Write the reference critique. Its verdict is Yes exactly if `truth.is_true` holds.

    Raises:
        ValueError: Question or response is outside the world's language.
    """
    parsed = claims(response)
    if not parsed:
        raise ValueError(f"not a response in the embedded world's language: {response!r}")
    kind, subject, other = parse(question)
    clauses: dict[int, list[Claim]] = {}
    for claim in parsed:
        clauses.setdefault(claim.start, []).append(claim)
    lines = []
    verdict = any(about(kind, subject, other, claim) for claim in parsed)
    for clause in clauses.values():
        right = all(holds(scene, claim) for claim in clause)
        verdict = verdict and right
        lines.append(
            f"Claim: {_claim_text(clause)}. Image: {_image_text(scene, clause)}. {'Right' if right else 'Wrong'}."
        )
    return "\n".join([*lines, f"Verdict: {verdict_word(verdict)}"])


def verdict_word(right: bool) -> str:
    """Return "Yes" or "No" for a verdict."""
    return "Yes" if right else "No"


def _claim_text(clause: list[Claim]) -> str:
    """Quote a clause in lower case. A clause about an object and its place is quoted without "there is"."""
    text = clause[0].text.lower()
    return text.removeprefix("there is ") if len(clause) == 2 else text


def _image_text(scene: Scene, clause: list[Claim]) -> str:
    """Describe what the image shows where the clause makes its claim."""
    claim = clause[-1]
    subjects = scene.matching(claim.subject)
    if claim.kind == ClaimKind.SPATIAL and not claim.other:
        cell = CELLS.index(claim.value)
        occupant = scene.at(cell)
        return object_phrase(occupant.name, cell) if occupant else f"nothing at the {claim.value}"
    if claim.kind == ClaimKind.SPATIAL:
        others = scene.matching(claim.other)
        return f"{object_phrases(subjects, f'no {claim.subject}')}, {object_phrases(others, f'no {claim.other}')}"
    return object_phrases(subjects, f"no {claim.subject}s" if claim.kind == ClaimKind.COUNT else f"no {claim.subject}")
