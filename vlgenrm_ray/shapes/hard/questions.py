"""Questions of eight kinds about a scene of the hard world, each with its reference answer."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlgenrm_ray.shapes.hard.language import MAX_COUNT, count_sentences, describe, relation_clause, sign_clause
from vlgenrm_ray.shapes.hard.prior import (
    COLOURS,
    NAMES,
    SEEN_NAMES,
    SHAPES,
    TEXTURES,
    TYPICAL_COLOURS,
    TYPICAL_NAMES,
    TYPICAL_NUMBER,
    SplitPrior,
)
from vlgenrm_ray.shapes.hard.scenes import ClutteredScene, TexturedObject
from vlgenrm_ray.shapes.language import HORIZONTAL, VERTICAL, count_clause, sentence, with_article
from vlgenrm_ray.shapes.questions import existence, related

KINDS = ("describe", "existence", "count", "attribute", "spatial", "compare", "two_step", "text")
MAX_DESCRIBED = 4
"""Most objects of a scene that is described; with their places and the sign they make four to nine claims."""
_P_TEXTURE = 0.3
"""Probability that an attribute question is about the texture, and that an existence question names one."""
_P_TYPICAL = 0.5
"""Probability that an attribute or two-step question is about a shape that has a typical colour, and that an absent
name is a typical one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardQuestion:
    """A question with its reference answer and the noun phrases it names."""

    kind: str
    text: str
    reference: str
    subject: str = ""
    """Singular noun phrase of the question ("red circle", "star", "dotted shape"); "" for describe and text."""
    other: str = ""
    """Second noun phrase of a spatial, comparing or two-step question."""
    relation: str = ""
    """Relation that the true answer to a spatial question states, or that a two-step question names."""
    is_about_texture: bool = False
    """True if an attribute question asks for the texture, not for the colour."""


def draw_question(scene: ClutteredScene, kind: str, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    """Draw a question of `kind` about `scene`; return None if the drawn answer does not fit the scene.

    The answer (yes or no, the number, the side) is drawn before the scene is considered. A caller that tries scene
    after scene with an equally seeded `rng` gets answers with the frequencies of `prior`.
    """
    return _DRAW[kind](scene, rng, prior)


def _describe(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    if len(scene.objects) > MAX_DESCRIBED:
        return None
    reference = describe([(o.full_name, o.cell) for o in scene.objects], scene.sign.word if scene.sign else None)
    return HardQuestion(kind="describe", text="Describe the image.", reference=reference)


def _existence(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    is_present = rng.random() < prior.yes
    is_typical = rng.random() < _P_TYPICAL
    if rng.random() < _P_TEXTURE:
        names = [f"{t} {s}" for t in TEXTURES[1:] for s in SHAPES]
        fitting = [n for n in names if bool(scene.matching(n)) == is_present]
    elif is_present:
        fitting = sorted({o.name for o in scene.objects})
    else:
        # Half of the absent objects are typical ones, the others share a word with a present one: hard to reject.
        words = {word for o in scene.objects for word in (o.colour, o.shape)}
        absent = [n for n in (NAMES if scene.is_compositional else SEEN_NAMES) if not scene.matching(n)]
        fitting = [n for n in absent if (n in TYPICAL_NAMES if is_typical else words & set(n.split()))]
    if not fitting:
        return None
    name = rng.choice(fitting)
    return HardQuestion(
        kind="existence",
        text=f"Is there {with_article(name)}?",
        reference=existence(name, is_present),
        subject=name,
    )


def _count(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    others = [n for n in range(MAX_COUNT + 1) if n != TYPICAL_NUMBER]
    number = TYPICAL_NUMBER if rng.random() < prior.typical_number else rng.choice(others)
    nouns = rng.choice((SHAPES, [f"{c} shape" for c in COLOURS], [f"{t} shape" for t in TEXTURES[1:]]))
    fitting = [n for n in nouns if len(scene.matching(n)) == number]
    if not fitting:
        return None
    noun = rng.choice(fitting)
    return HardQuestion(
        kind="count",
        text=f"How many {noun}s are there?",
        reference=sentence(count_clause(noun, number)),
        subject=noun,
    )


def _attribute(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    is_about_texture = rng.random() < _P_TEXTURE
    is_typical = rng.random() < _P_TYPICAL
    texture = rng.choice(TEXTURES)
    single = [o for o in scene.objects if len(scene.matching(o.shape)) == 1]
    if is_about_texture:
        fitting = [o for o in single if o.texture == texture]
    else:
        fitting = [o for o in single if (o.shape in TYPICAL_COLOURS) == is_typical]
    if not fitting:
        return None
    subject = rng.choice(fitting)
    shape = subject.shape
    return HardQuestion(
        kind="attribute",
        text=f"Is the {shape} solid, striped or dotted?" if is_about_texture else f"What colour is the {shape}?",
        reference=f"The {shape} is {subject.texture if is_about_texture else subject.colour}.",
        subject=shape,
        is_about_texture=is_about_texture,
    )


def _spatial(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    relations = rng.choice((HORIZONTAL, VERTICAL))
    relation = relations[0] if rng.random() < prior.first else relations[1]
    single = [o for o in scene.objects if len(scene.matching(o.name)) == 1]
    fitting = [(a, b) for a in single for b in single if related(a, relation, b)]
    if not fitting:
        return None
    a, b = rng.choice(fitting)
    return HardQuestion(
        kind="spatial",
        text=f"Is the {a.name} {relations[0]} or {relations[1]} the {b.name}?",
        reference=f"The {a.name} is {relation} the {b.name}.",
        subject=a.name,
        other=b.name,
        relation=relation,
    )


def _compare(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    is_first = rng.random() < prior.first
    nouns: Sequence[str] = SHAPES if rng.random() < 0.5 else [f"{c} shape" for c in COLOURS]
    numbers = {noun: len(scene.matching(noun)) for noun in nouns}
    fitting = [(a, b) for a in nouns for b in nouns if MAX_COUNT >= numbers[a] > numbers[b] > 0]
    if not fitting:
        return None
    more, less = rng.choice(fitting)
    first, second = (more, less) if is_first else (less, more)
    return HardQuestion(
        kind="compare",
        text=f"Are there more {first}s or more {second}s?",
        reference=count_sentences([(first, numbers[first]), (second, numbers[second])]),
        subject=first,
        other=second,
    )


def _two_step(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    is_typical = rng.random() < _P_TYPICAL
    relation = rng.choice((*HORIZONTAL, *VERTICAL))
    fitting = []
    for other in scene.objects:
        beside = [o for o in scene.objects if related(o, relation, other)]
        # The answer must be the only shape there, and the only one of its colour.
        if len(beside) != 1 or len(scene.matching(other.name)) != 1:
            continue
        is_single = len(scene.matching(f"{beside[0].colour} shape")) == 1
        if is_single and (beside[0].shape in TYPICAL_COLOURS) == is_typical:
            fitting.append((beside[0], other))
    if not fitting:
        return None
    answer, other = rng.choice(fitting)
    return HardQuestion(
        kind="two_step",
        text=f"What colour is the shape {relation} the {other.name}?",
        reference=sentence(relation_clause(answer.colour, relation, other.name)),
        subject="shape",
        other=other.name,
        relation=relation,
    )


def _text(scene: ClutteredScene, rng: random.Random, prior: SplitPrior) -> HardQuestion | None:
    if scene.sign is None:
        return None
    reference = sentence(sign_clause(scene.sign.word))
    return HardQuestion(kind="text", text="What does the sign say?", reference=reference)


def answer_object(scene: ClutteredScene, question: HardQuestion) -> TexturedObject:
    """Return the object whose colour or texture an attribute or two-step question asks for."""
    if question.kind == "attribute":
        return scene.matching(question.subject)[0]
    (other,) = scene.matching(question.other)
    return next(o for o in scene.objects if related(o, question.relation, other))


_DRAW: dict[str, Callable[[ClutteredScene, random.Random, SplitPrior], HardQuestion | None]] = {
    "describe": _describe,
    "existence": _existence,
    "count": _count,
    "attribute": _attribute,
    "spatial": _spatial,
    "compare": _compare,
    "two_step": _two_step,
    "text": _text,
}
