"""Reference critiques of the hard world: what a perfect judge writes about a response, then the verdict.

Claim: a red circle at the top left. Image: a striped red circle at the top left. Right.
Claim: the sign says "STOP". Image: the sign says "SHOP". Wrong.
Verdict: No
"""

from vlgenrm_ray.shapes.hard.language import full_object_phrases, sign_clause
from vlgenrm_ray.shapes.hard.scenes import ClutteredScene
from vlgenrm_ray.shapes.hard.truth import ParsedSentence, answers, is_statement_true, parse_question, statements
from vlgenrm_ray.shapes.language import object_phrase
from vlgenrm_ray.shapes.questions import related
from vlgenrm_ray.shapes.reference_critiques import verdict_word
from vlgenrm_ray.shapes.scenes import CELLS


def reference_critique(scene: ClutteredScene, question: str, response: str) -> str:
    """Write the reference critique. Its verdict is Yes exactly if `truth.is_true` holds.

    Raises:
        ValueError: Question or response is outside the world's language.
    """
    parsed = statements(response)
    if not parsed:
        raise ValueError(f"not a response in the hard world's language: {response!r}")
    lines = []
    verdict = answers(parse_question(question), parsed)
    for statement in parsed:
        right = is_statement_true(scene, statement)
        verdict = verdict and right
        lines.append(
            f"Claim: {_claim_text(statement)}. Image: {_image_text(scene, statement)}. {'Right' if right else 'Wrong'}."
        )
    return "\n".join([*lines, f"Verdict: {verdict_word(verdict)}"])


def _claim_text(statement: ParsedSentence) -> str:
    """Quote a sentence without its capital letter. A sentence about an object and its place loses "there is"."""
    text = statement.text[0].lower() + statement.text[1:]
    return text.removeprefix("there is ") if statement.parts.get("place") else text


def _image_text(scene: ClutteredScene, statement: ParsedSentence) -> str:
    """Describe what the image shows where the sentence makes its claim."""
    parts = statement.parts
    if "word" in parts:
        return sign_clause(scene.sign.word) if scene.sign else "no sign"
    if place := parts.get("place"):
        occupant = scene.at(CELLS.index(place))
        return object_phrase(occupant.full_name, occupant.cell) if occupant else f"nothing at the {place}"
    if "side" in parts:
        others = scene.matching(parts["there"])
        beside = [o for o in scene.objects if any(related(o, parts["side"], other) for other in others)]
        return f"{full_object_phrases(beside, 'nothing')}, {full_object_phrases(others, 'no ' + parts['there'])}"
    if "relation" in parts:
        nouns = (parts["one"], parts["two"])
        return ", ".join(full_object_phrases(scene.matching(noun), f"no {noun}") for noun in nouns)
    if "counted" in parts:
        return full_object_phrases(scene.matching(parts["counted"]), f"no {parts['counted']}s")
    noun = parts.get("is") or parts.get("no") or parts["the"]
    return full_object_phrases(scene.matching(noun), f"no {noun}")
