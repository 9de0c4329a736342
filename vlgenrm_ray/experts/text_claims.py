"""Claims about text in the image: 'The sign says "STOP".', 'There is a sign that reads "EXIT".'

A quotation is a claim about text only in the forms below, in which every word is known; in any other form the claim is
hedged, and so is every statement within the quotation.
"""

import re

from vlgenrm_ray.records import Claim, ClaimKind

_BEARERS = (
    "sign|signs|label|billboard|poster|banner|placard|plaque|board|chalkboard|whiteboard|screen|display|license plate|"
    "number plate|plate|shirt|t-shirt|jersey|hat|cap|bus|train|truck|van|taxi|boat|box|package|bottle|can|cup|mug|book|"
    "book cover|newspaper|magazine|menu|storefront|awning|wall|door|watermark|logo|clock|cake|sticker|tag|ticket|"
    "street sign|stop sign|road sign|traffic sign"
)
_ADJECTIVES = (
    "red|orange|yellow|green|blue|purple|pink|brown|black|white|gray|grey|large|small|big|little|old|new|wooden|metal|"
    "digital|neon|front|street|road|traffic|stop|store|shop|round|square|rectangular|octagonal|electronic|illuminated"
)
_THING = rf"(?:the|a|an|this|one) (?:(?:{_ADJECTIVES}) ){{0,3}}(?P<bearer>{_BEARERS})"
_WHERE = (
    "(?: (?:on|at|in|above|below|near|next to|behind) (?:the|a|an) "
    rf"(?:(?:{_ADJECTIVES}|top|bottom|left|right) ){{0,2}}(?:{_BEARERS}|"
    "image|picture|photo|left|right|top|bottom|center|centre|street|road|building|window|background))"
)
_THE_TEXT = r"(?: (?:the|a) (?:text|word|words|name|letters|number|title|message|phrase))?"
_SAYS = rf"(?:says|reads|shows|displays|states|bears|has|is labeled|is labelled|is marked){_THE_TEXT}"
_SAYING = rf"(?:saying|reading|showing|displaying|labeled|labelled|marked|with){_THE_TEXT}"
_QUOTE = '[:,]? ["\u201c\u201d\u00ab\']+(?P<value>[^"\u201c\u201d\u00ab\u00bb\n]{1,80}?)[.,!]?["\u201c\u201d\u00bb\']+'
_BEFORE = r"(?:there is |the (?:image|picture|photo) (?:shows|features|depicts|contains|has) |i see |we see )"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?:yes, )?{_THING}{_WHERE}? {_SAYS}{_QUOTE}{_WHERE}?[.!]?",
        rf"(?:yes, )?{_BEFORE}?{_THING}{_WHERE}? (?:that|which) {_SAYS}{_QUOTE}{_WHERE}?[.!]?",
        rf"(?:yes, )?{_BEFORE}?{_THING}{_WHERE}? {_SAYING}{_QUOTE}(?: on it| written on it)?{_WHERE}?[.!]?",
        rf"(?:yes, )?(?:{_BEFORE})?the (?P<bearer>text|word|words|name|letters|number|title){_QUOTE}"
        rf"(?: is| are)?(?: (?:written|visible|printed|shown|displayed|painted))?{_WHERE}?[.!]?",
    )
)
_ANY_FORM = re.compile(rf"\b(?P<bearer>{_BEARERS}|text|words?)\b[^\"\u201c\n]{{0,60}}?{_QUOTE}", re.IGNORECASE)


def read_text_claim(text: str, start: int, end: int) -> Claim | None:
    """Return the claim that the sentence text[start:end] makes about text in the image, if any; hedged if unclear."""
    sentence = text[start:end].strip()
    start += len(text[start:end]) - len(text[start:end].lstrip())
    for form in _FORMS:
        if match := form.fullmatch(sentence):
            return _claim(text, start, match, hedged=False)
    match = _ANY_FORM.search(sentence)
    return _claim(text, start, match, hedged=True) if match else None


def _claim(text: str, start: int, match: re.Match[str], *, hedged: bool) -> Claim:
    end = start + match.end("value")
    begin = start + match.start()
    return Claim(
        kind=ClaimKind.TEXT,
        subject=match["bearer"].lower(),
        text=text[begin:end],
        start=begin,
        end=end,
        value=" ".join(match["value"].split()),
        hedged=hedged,
    )
