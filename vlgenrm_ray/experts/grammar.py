"""The grammar of plain sentences: the forms in which every word is understood, affirmed or denied.

A claim is only affirmed (or denied) by a sentence that the grammar places *in whole*. Each item of a sentence is
written as one letter; the tables below say which letters may follow each other and in which forms a denial may stand.
Everything else is not plain, and the claims of such a sentence are hedged: an unknown word, a modal, a question without
a question mark, a quotation, a comparison, a numeral that is not read whole, a denial whose scope is unclear.

    a  indefinite noun phrase of the vocabulary, "a red circle", "circles"
    b  definite one, "the circle"               u  universal one, "every circle"
    c  counted one, "two circles"               N  one with another determiner, "many circles"
    i  "one circle"                             y  "any circle"
    O  denied one, "no circle", "zero circles"  Z  "nothing"
    o  "no shirt"                               H  thing, "a shirt"
    S  scene, "the street"                      P  pronoun
    G  the image, "this picture"                g  "a picture"
    Q  place, "at the top left"                 J  "in the image"
    R  relation, "left of"                      K  preposition
    C  attribute                                F  "of"
    E  adjective                                D  adverb
    T  "there is"                               e  "there"
    I  "is"                                     V  verb
    W  "has"                                    B  "shows"
    L  "visible"                                v  "see"
    X  "not"                                    M  "without"
    U  "which"                                  Y  "where"
    w  "what"                                   !  "Yes," or "No,"
    ,  comma, "and"                             ;  end of a clause
    ?  anything else
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

from vlgenrm_ray.experts.lexicon import Word, WordKind, english
from vlgenrm_ray.experts.phrases import MATERIALS, ContextPhrase, Item, NounPhrase

_LETTERS = {
    WordKind.ATTRIBUTE: "C",
    WordKind.PLACE: "Q",
    WordKind.RELATION: "R",
    WordKind.NOT: "X",
    WordKind.WITHOUT: "M",
    WordKind.IS: "I",
    WordKind.AND: ",",
    WordKind.BREAK: ";",
    WordKind.QUESTION: "w",
    WordKind.YES: "!",
    WordKind.THERE: "e",
    WordKind.PRESENT: "L",
    WordKind.HAVE: "W",
    WordKind.DISPLAY: "B",
    WordKind.SEE: "v",
    WordKind.POSTURE: "V",
    WordKind.ADVERB: "D",
    WordKind.OF: "F",
    WordKind.PREPOSITION: "K",
    WordKind.PRONOUN: "P",
    WordKind.WHOLE: "J",
    WordKind.IMAGE: "G",
    WordKind.SCENE: "S",
    WordKind.THING: "H",
    WordKind.ADJECTIVE: "E",
    WordKind.VERB: "V",
}
"""Kind of a word -> its letter. A word of another kind is "?"."""
_DETERMINER_LETTERS = {
    None: "a",
    WordKind.A: "a",
    WordKind.SOME: "N",
    WordKind.ANY: "y",
    WordKind.EVERY: "u",
    WordKind.THE: "b",
    WordKind.NONE: "O",
    WordKind.NOTHING: "Z",
}
_ADVERBIAL = ("on", "behind", "inside", "around", "along", "by")
"""Relations and prepositions that may end a sentence: "with skis on"."""
_DOUBTS = (WordKind.NOT, WordKind.NONE, WordKind.NOTHING, WordKind.QUESTION)
_MAX_REMARK = 4
"""Longest sentence without objects, in words, whose unknown words may take back what was said."""
_DEMONSTRATIVES = ("this", "these", "that", "those")

_COLOURS = ("color", "colors", "colour", "colours")
_LIKENESSES = (
    *("color", "colors", "colour", "colours", "design", "pattern", "patterns", "stripes", "costume", "costumes"),
    *("outfit", "outfits", "attire", "clothing", "clothes", "atmosphere", "ambiance", "mood", "shade", "style"),
)
"""Things that may be like an object that is not there."""
_DEPICTIONS = (
    *("design", "pattern", "patterns", "menu", "magazine", "newspaper", "billboard", "sign", "signs", "t-shirt"),
    *("t-shirts", "costume", "costumes", "papers"),
)
"""Things that show pictures of objects."""
_BASE_VERBS = ("stand", "drink", "ride", "sit", "walk", "run", "play", "hold", "wear", "eat", "carry", "race")
"""Verbs that cannot follow a noun in the singular, so that both are one noun."""
_PREDICATES = (WordKind.IS, WordKind.HAVE, WordKind.DISPLAY, WordKind.SEE)
_ANNOUNCEMENTS = frozenset(
    (WordKind.DISPLAY, WordKind.HAVE, WordKind.THERE, WordKind.SEE, WordKind.PRESENT, WordKind.PLACE, WordKind.WHOLE)
)
"""Words that announce what follows a colon: "the image shows:"."""

_OBJECTS = "abciuN"
_PHRASES = f"{_OBJECTS}HSGgP"
_AFTER_VERB = f"{_PHRASES}DQJKRL"
_FOLLOWERS = {
    **dict.fromkeys("abuN", "IVWBvLQJKRFDEUe"),
    **dict.fromkeys("ci", "IVWBvLQJKRFDEe"),
    **dict.fromkeys("HSGg", "IVWBvLQJKRFDEUe"),
    "P": "IVWBvLQJKRDE",
    "I": f"{_PHRASES}CEVLQJKRDWBe",
    "T": f"{_PHRASES}D",
    "V": f"{_AFTER_VERB}EV",
    "W": f"{_PHRASES}D",
    "B": f"{_PHRASES}D",
    "v": f"{_PHRASES}D",
    "L": "DQJKRVE",
    "Q": "IVLJDKRTUWBv",
    "J": f"{_PHRASES}IVLDKRTUQWBv",
    "K": f"{_PHRASES}DKRF",
    "R": f"{_PHRASES}D",
    "F": _PHRASES,
    "D": f"{_PHRASES}ICEVLQJKRWBvTD",
    "C": "DKJQRV",
    "E": "CDJQVE",
    "U": "IVWBvLD",
    "Y": f"{_PHRASES}TD",
    "e": f"{_PHRASES}JKQRVLD",
    "!": "T",
}
"""Letter -> the letters that may follow it within a part without denial. Every letter may end a part, except these:"""
_NO_ENDS = frozenset("KRFUY")
_STARTS = f"{_PHRASES}TQJKRDe!"
"""First letters of a sentence or clause: none that would make it a question or an order."""
_CONTINUATIONS = f"{_STARTS}IVWBvLCE"
"""First letters after a comma, where the subject may be understood."""

_PLACE = f"(?:Q|J|L|R[{_OBJECTS}])"
_TAIL = f"{_PLACE}?J?"
_NO_SUCH_OBJECT = re.compile(
    "[JQ]?(?:"
    f"TX[acy]{_TAIL}"  # there is not a circle (at the top left)
    f"|TD?O{_TAIL}"  # there is no circle
    "|TD?o(?:[KR][bSHG])?J?"  # there is no water (near the bird)
    f"|TZ(?:Q|R[{_OBJECTS}])J?"  # there is nothing at the top left
    ")"
)
_DENIED_ITEM = re.compile(f"[JQ]?D?(?:O{_TAIL}|o(?:[KR][bSHG])?J?|Z(?:Q|R[{_OBJECTS}])J?)")
"""No circle; nothing at the top left."""
_DENIED_IN_SCENE = re.compile(
    "J?(?:"
    "[SG][WB]O[JL]?|PvO[JL]?|[SG]KO[JL]?"  # the image shows no circle, I see no circle, a street with no cars
    "|[SG]X[WB][acy][JL]?|PXv[acy][JL]?"  # the image does not show a circle
    "|[SG]M[ay][JL]?"  # a street without cars
    ")"
)
_DENIED_OF_SUBJECT = re.compile(
    "J?(?:"
    "[ab]ID?X[LJ]J?"  # the circle is not visible
    f"|[abiN]ID?X(?:C|Q|R[{_OBJECTS}])J?"  # the circle is not red, not at the top left, not left of the square
    f"|OID?(?:C|{_PLACE})J?"  # no circle is red, no circle is visible
    f"|ZID?(?:C|Q|R[{_OBJECTS}])J?"  # nothing is red
    # The man is not wearing a tie: the extraction hedges everything after the "not".
    f"|bIXV(?:[DQJLE]|[KR]?[{_PHRASES}])*"
    ")"
)
_AFTER_DENIAL = re.compile(f"D*[{_PHRASES}Te]")
"""Beginning of a part that does not belong to the denial before it."""
_OWNED = re.compile("[KRVIFMXE]|[HPabciuN]W")
"""Phrases that an item of a list may belong to: in "a man with a hat and no tie" another man may have a tie."""
_DENIAL = re.compile("[XOoZMy]")
_PREDICATE = re.compile("[TIVWBvL]")
_SUBJECT = re.compile(f"[{_PHRASES}OoZT]")
_UNCLEAR_FORMS = (
    # A question without a question mark: "is there a circle".
    re.compile("(?:^|[,;])[DUY]?Ie"),
    # A relative clause says of which circles the denial or the number holds. A denial in one holds there only.
    re.compile(f"[Oci]{_TAIL},?;?[UY]|Y[^;]*[XOoZMy]"),
    # An exception: "all shapes are there but a circle", "no shapes but a circle".
    re.compile("[uO][^;]*;[^;TIVWBvL]+(?:;|$)|(?:^|;)[^;TIVWBvL]*[uO][^;TIVWBvL]*;[^;]"),
    # A picture in the image: "a wall with a picture of a dog", "the picture of a dog is small", "a book shows a dog".
    re.compile("(?<!^)(?<!;)(?<!PI)(?:g|GF)|[Gg]F[^;]*I|[HPabciuN]D*I?D*B"),
    # A number in one place: "on the couch, there are two cats".
    re.compile("(?:^|;)D*(?:R|K[HPabciuN])[^;]*c"),
    # Two for each: "each car has two wheels", "two dogs in every car".
    re.compile("u[^;]*c|c[^;]*u"),
    # "This is where a dog sits."
    re.compile("I;Y"),
    # "Behind the picture", "to him".
    re.compile("[KRD]G|(?:^|[,;])D*KP"),
)
"""Forms that are not plain although each of their parts is."""
_PLAIN_QUESTION = re.compile(f"(?:I|w)[{_PHRASES}yICEVWBvLQJKRDeTFw,]*")


def is_plain_statement(items: Sequence[Item]) -> bool:
    """Check that the grammar understands every item of a sentence and the scope of every denial in it."""
    letters = spell(items)
    if "?" in letters or "w" in letters or any(form.search(letters) for form in _UNCLEAR_FORMS):
        return False
    if any(map(_is_unclear_at, [items] * len(items), range(len(items)))):
        return False
    start = 0
    for clause in letters.split(";"):
        if not _is_plain_clause(clause, letters[:start]):
            return False
        start += len(clause) + 1
    return True


def _is_unclear_at(items: Sequence[Item], at: int) -> bool:
    """Check for a form that is not plain and that the letters do not show, at one item of a sentence."""
    item = items[at]
    following = items[at + 1 : at + 3]
    if isinstance(item, NounPhrase):
        if not item.is_plural and following and isinstance(following[0], Word) and following[0].value in _BASE_VERBS:
            # "A hot dog stand", "an orange drink".
            return True
        if len(following) == 2 and _is_kind(following[0], WordKind.OF):
            # "A dog of snow", "a bear of a man".
            substance = following[1]
            is_one = isinstance(substance, NounPhrase) and substance.determiner is WordKind.A
            is_material = isinstance(substance, ContextPhrase) and substance.noun in MATERIALS
            if is_material or (is_one and not item.is_plural):
                return True
        # "The bear is a costume", "the man is a bear": one of them is not there.
        complement = following[1] if len(following) == 2 and _is_kind(following[0], WordKind.IS) else None
        is_colour = isinstance(complement, ContextPhrase) and complement.noun in _COLOURS
        is_phrase = isinstance(complement, NounPhrase | ContextPhrase) and not is_colour
        return is_phrase and not item.is_general
    if isinstance(item, ContextPhrase):
        # "The design of a dog", "the color of an orange".
        if item.noun == "camera":
            # "A dog is behind the camera."
            return at > 0 and _is_kind(items[at - 1], WordKind.RELATION)
        if not following or not isinstance(following[0], Word):
            return False
        # "The menu features hot dogs", "a sign with a dog".
        shows = following[0].kind is WordKind.HAVE or following[0].value == "with"
        return (shows and item.noun in _DEPICTIONS) or (following[0].kind is WordKind.OF and item.noun in _LIKENESSES)
    if at == 0 and item.value == "no" and following and _is_mark(following[0], ",:;"):
        # "No: dogs." may mean "no dogs"; "No, there is a dog." does not.
        return not any(isinstance(other, Word) and other.kind in _PREDICATES for other in items)
    if item.value in ("down", "up") and at == 0:
        # "Down with dogs!"
        return bool(following) and _is_kind(following[0], WordKind.PREPOSITION)
    if item.kind is WordKind.PRONOUN and item.value in ("i", "you"):
        # "I have a dog", "you are a bear".
        return bool(following) and (_is_kind(following[0], WordKind.IS) or _is_kind(following[0], WordKind.HAVE))
    return item.value == ":" and at + 1 < len(items) and _quotes(items[:at])


def _quotes(items: Sequence[Item]) -> bool:
    """Check whether the words before a colon say whose words, or what label, follows: "the sign: no dogs"."""
    start = max((i + 1 for i, item in enumerate(items) if _is_kind(item, WordKind.BREAK)), default=0)
    clause = items[start:]
    if any(isinstance(item, Word) and item.kind in _ANNOUNCEMENTS for item in clause):
        return False
    return any(
        isinstance(item, NounPhrase)
        or (isinstance(item, ContextPhrase) and item.kind is WordKind.THING)
        or (isinstance(item, Word) and item.kind in (WordKind.PRONOUN, WordKind.VERB))
        for item in clause
    )


def is_plain_question(items: Sequence[Item]) -> bool:
    """Check that a question asks what is in the image, so that the answer after it means what it says."""
    return bool(_PLAIN_QUESTION.fullmatch(spell(items).strip(",;")))


def takes_back(items: Sequence[Item]) -> bool:
    """Check for a sentence that denies or questions another one: "Not!", "No, there is not.", "Or is there?"."""
    is_about_objects = any(isinstance(item, NounPhrase | ContextPhrase) for item in items)
    return not is_about_objects and any(isinstance(item, Word) and item.kind in _DOUBTS for item in items)


def is_remark(items: Sequence[Item]) -> bool:
    """Check for a short sentence of unknown words about what was said before: "Arguably.", "It is bogus."."""
    if any(isinstance(item, NounPhrase | ContextPhrase) for item in items):
        return False
    words = [item for item in items if isinstance(item, Word) and item.kind is not WordKind.BREAK]
    is_about_text = bool(words) and (words[0].kind is WordKind.PRONOUN or words[0].value in _DEMONSTRATIVES)
    has_subject = any(word.kind is WordKind.IS for word in words) and not is_about_text
    is_unknown = any(word.kind in (WordKind.OTHER, WordKind.HEDGE) for word in words)
    return len(words) <= _MAX_REMARK and is_unknown and not has_subject


def is_fragment(items: Sequence[Item]) -> bool:
    """Check for an answer that is no sentence ("A dog."), or a sentence about "it" ("It is a dog.")."""
    letters = spell(items)
    return not re.search("[TWBvVLQJ]|I(?!$)", letters) or re.match("D*,?PI", letters) is not None


class Stance(StrEnum):
    """Effect of a question on the meaning of its answer."""

    PRESENCE = "presence"
    """The answer means what it says."""
    ABSENCE = "absence"
    """A phrase alone names an object that is missing, replaced or only thought of."""
    FALSEHOOD = "falsehood"
    """The answer may be a statement that is false."""


def question_stance(question: str) -> Stance:
    """Return how an answer to a question is to be read. Words of `english.yaml` decide."""
    words = set(re.findall(r"[a-z]+(?:'[a-z]+)?", question.lower().replace("\u2019", "'")))
    if words & set(english()["falsehood_questions"]):
        return Stance.FALSEHOOD
    is_denied = words & set(english()["absence_questions"]) or any(word.endswith("n't") for word in words)
    return Stance.ABSENCE if is_denied else Stance.PRESENCE


def spell(items: Sequence[Item]) -> str:
    """Return the letters of the items of a sentence."""
    letters = "".join(_letter(item, items[i - 1 : i], items[i + 1 : i + 2]) for i, item in enumerate(items))
    letters = re.sub("eD*I", "T", letters)
    return re.sub(",+", ",", re.sub(",*;[,;]*", ";", letters))


def _letter(item: Item, before: Sequence[Item], after: Sequence[Item]) -> str:
    if isinstance(item, ContextPhrase):
        if not item.is_plain:
            return "?"
        if item.determiner is WordKind.NONE:
            return "o"
        if item.determiner is WordKind.EVERY:
            return "u"
        return "g" if item.kind is WordKind.IMAGE and item.determiner is not WordKind.THE else _LETTERS[item.kind]
    if isinstance(item, NounPhrase):
        if not item.is_plain:
            return "?"
        if item.determiner is WordKind.NUMBER:
            return {"0": "O", "1": "i"}.get(item.number, "c")
        return _DETERMINER_LETTERS[item.determiner]
    if item.kind is WordKind.NONE and item.value == "no" and not before and (not after or _is_mark(after[0], ",;:")):
        return "!"
    if item.kind is WordKind.RELATIVE:
        return "w" if not before else ";Y" if item.value == "where" else ";U"
    if item.value in _ADVERBIAL and (not after or _is_mark(after[0])):
        return "D"
    if item.kind is WordKind.THE:
        return _spell_determiner(item, before, after)
    return _LETTERS.get(item.kind, "?")


def _spell_determiner(word: Word, before: Sequence[Item], after: Sequence[Item]) -> str:
    """Return the letter of a determiner without a noun: "this is", "a dog that is", "next to her"."""
    if word.value == "her":
        return "P"
    if word.value in _DEMONSTRATIVES and after and _is_kind(after[0], WordKind.IS):
        if not before or _is_kind(before[0], WordKind.BREAK):
            return "P"
        if word.value == "that" and isinstance(before[0], NounPhrase | ContextPhrase):
            return "U"
    return "?"


def _is_kind(item: Item, kind: WordKind) -> bool:
    return isinstance(item, Word) and item.kind is kind


def _is_mark(item: Item, marks: str = ",;:.!()\n\u2014") -> bool:
    return isinstance(item, Word) and item.value in marks


def _is_plain_clause(letters: str, clauses_before: str) -> bool:
    """Check the parts of a clause between its commas."""
    has_predicate = denies_subject = False
    before = ""
    for part in filter(None, letters.split(",")):
        is_placed = (
            _is_placed_denial(part, before, clauses_before, has_predicate=has_predicate)
            if _DENIAL.search(part)
            else _is_plain_part(part, before, clauses_before)
        )
        # In "no dog, a cat is visible" the denial may cover the cat.
        if not is_placed or (denies_subject and _PREDICATE.search(part) and not part.startswith("T")):
            return False
        has_predicate = has_predicate or bool(_PREDICATE.search(part))
        denies_subject = not has_predicate and (denies_subject or bool(_DENIAL.search(part)))
        before += f"{part},"
    return True


def _is_placed_denial(part: str, before: str, clauses_before: str, *, has_predicate: bool) -> bool:
    """Check that a part with a denial has a form whose scope is known, after the parts and clauses before it."""
    # "On the couch there is no dog" denies nothing elsewhere.
    is_restricted = bool(re.search("[KR]", before))
    if _NO_SUCH_OBJECT.fullmatch(part):
        return not is_restricted or has_predicate
    if _DENIED_ITEM.fullmatch(part):
        return not _OWNED.search(clauses_before + before)
    has_subject = bool(_SUBJECT.search(before))
    is_at_place = is_restricted or "Q" in before
    if _DENIED_IN_SCENE.fullmatch(part):
        return not has_subject and not is_at_place
    # In "a dog and a cat are not visible" the denial covers the dog as well.
    is_complete = has_predicate or not (has_subject or is_at_place)
    return is_complete and _DENIED_OF_SUBJECT.fullmatch(part) is not None


def _is_plain_part(part: str, before: str, clauses_before: str) -> bool:
    """Check a part without denial. It may continue the part before it, if that has a subject and no denial."""
    last = before[:-1].rpartition(",")[2]
    if _DENIAL.search(last) and not _AFTER_DENIAL.match(part):
        return False
    # "The image does not show a dog and a cat", "without a tie, a hat".
    if re.search("[XM]", last) and not _PREDICATE.search(part):
        return False
    can_continue = bool(_SUBJECT.search(before)) and not _DENIAL.search(last)
    starts = _CONTINUATIONS if can_continue else f"{_STARTS}UYV" if clauses_before.strip(";") else _STARTS
    if part[0] not in starts or part[-1] in _NO_ENDS:
        return False
    if part[0] == "C" and last[-1:] not in ("C", "E"):
        return False
    return all(b in _FOLLOWERS[a] for a, b in pairwise(part))
