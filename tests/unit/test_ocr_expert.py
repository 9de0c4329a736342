"""The OCR expert and the claims that it checks: quotations of text in the image."""

import time

import PIL.Image
import pytest
from factories import box
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.contracts import TextLine
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.expert import ExpertConfig
from vlgenrm_ray.experts.ocr import OcrExpert, check_text
from vlgenrm_ray.experts.pipeline import ExpertPipeline, build_expert
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind, Truth

COCO = load_vocabulary("coco")
CONFIG = ExpertsConfig(detector=DetectorConfig(model="none"))


def text_claims(text: str) -> list[Claim]:
    return [claim for claim in extract_claims(text, COCO) if claim.kind is ClaimKind.TEXT]


def lines(*texts: str, score: float = 0.99) -> list[TextLine]:
    return [TextLine(text, box("text", score=score, y0=20.0 * i, y1=20.0 * i + 10)) for i, text in enumerate(texts)]


class FakeReader:
    """Reads the same lines in every image."""

    def __init__(self, read_lines: list[TextLine]) -> None:
        self.lines = tuple(read_lines)
        self.num_images = 0

    def read(self, images: list[PIL.Image.Image]) -> list[tuple[TextLine, ...]]:
        self.num_images += len(images)
        return [self.lines for _ in images]


def truth_of(sentence: str, *read: str, score: float = 0.99) -> Truth:
    (claim,) = text_claims(sentence)
    return check_text(claim, lines(*read, score=score), 0.9).truth


# -- claims ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "subject", "value"),
    [
        ('The sign says "STOP".', "sign", "STOP"),
        ('There is a red sign that reads "Main St." on the left.', "sign", "Main St"),
        ('A bus with the number "42" on it.', "bus", "42"),
        ("The sign says \u2018EXIT\u2019.", "sign", ""),
        ("The word \u201cExit\u201d is visible above the door.", "word", "Exit"),
        ('The license plate reads: "ABC-123".', "license plate", "ABC-123"),
        ('Yes, the sign says "STOP".', "sign", "STOP"),
    ],
)
def test_quotations_of_things_that_bear_text_are_claims(text: str, subject: str, value: str) -> None:
    affirmed = [(claim.subject, claim.value) for claim in text_claims(text) if not claim.hedged]
    assert affirmed == ([(subject, value)] if value else [])


@pytest.mark.parametrize(
    "text",
    [
        'The sign does not say "STOP".',
        'No sign says "STOP".',
        'The sign says nothing like "STOP".',
        'Perhaps the sign says "STOP".',
        'It is false that the sign says "STOP".',
        'If the sign says "STOP", wait.',
        'The sign says "STOP". Just kidding.',
        'The sign should say "STOP".',
        'The sign says "STOP" or "YIELD".',
        'The sign almost says "STOP".',
        'What is missing? A sign that says "STOP".',
        'The man says "There is a dog."',
        'Does the sign say "STOP"?',
        '"The sign says "STOP"", he said.',
        'There was a sign that says "STOP".',
        'The image does not show a sign that says "STOP".',
    ],
)
def test_a_quotation_in_any_other_form_is_not_affirmed(text: str) -> None:
    assert all(claim.hedged for claim in extract_claims(text, COCO))


def test_a_quotation_does_not_hedge_other_sentences() -> None:
    claims = extract_claims('There is a dog. The sign says "FREE". There is a cat.', COCO)
    assert [(claim.subject, claim.hedged) for claim in claims] == [("dog", False), ("sign", False), ("cat", False)]


@pytest.mark.parametrize("part", ['sign "a" ', 'the sign says "', "sign ", "the red ", '" sign'])
def test_many_quotations_are_read_in_time(part: str) -> None:
    started = time.monotonic()
    extract_claims((part * 64_000)[:64_000], COCO)
    assert time.monotonic() - started < 20


# -- checking ----------------------------------------------------------------------------------------------------------


def test_a_text_is_supported_where_it_is_read() -> None:
    assert truth_of('The sign says "Stop!".', "STOP") is Truth.SUPPORTED
    assert truth_of('The sign says "main street".', "MAIN", "STREET", "42") is Truth.SUPPORTED
    assert truth_of('The sign says "STREET 42".', "Main Street 42") is Truth.SUPPORTED


def test_a_part_of_a_word_is_not_the_text() -> None:
    assert truth_of('The sign says "MAIN".', "DOMAIN") is not Truth.SUPPORTED
    assert truth_of('The sign says "STOP".', "STOPWATCH") is not Truth.SUPPORTED


def test_only_clearly_other_text_contradicts() -> None:
    assert truth_of('The sign says "STOP".', "YIELD") is Truth.CONTRADICTED
    assert truth_of('The sign says "STOP".', "ST0P") is Truth.UNKNOWN, "a misread letter"
    assert truth_of('The sign says "STOP".') is Truth.UNKNOWN, "nothing was read"
    assert truth_of('The sign says "STOP".', "YIELD", score=0.7) is Truth.UNKNOWN
    assert truth_of('The sign says "STOP".', "YIELD", "Bakery", "Open") is Truth.UNKNOWN, "small text may be missed"


@given(st.text(min_size=1, max_size=12), st.lists(st.text(max_size=12), max_size=4))
def test_any_text_is_checked(value: str, read: list[str]) -> None:
    claim = Claim(kind=ClaimKind.TEXT, subject="sign", text="", start=0, end=0, value=value)
    finding = check_text(claim, lines(*read), 0.9)
    assert 0 <= finding.score <= 1
    assert len(finding.boxes) <= len(read)


def test_the_expert_reads_only_images_with_claims_about_text() -> None:
    reader = FakeReader(lines("STOP"))
    pipeline = ExpertPipeline(CONFIG, [OcrExpert(CONFIG, text_reader=reader)])
    plain_image = PIL.Image.new("RGB", (64, 64), "white")
    assert pipeline.report(plain_image, ["There is a dog."]).findings[0][0].truth is Truth.UNKNOWN
    assert reader.num_images == 0
    report = pipeline.report(plain_image, ['The sign says "STOP".', 'The sign says "YIELD".'])
    assert [f.truth for of_text in report.findings for f in of_text] == [Truth.SUPPORTED, Truth.CONTRADICTED]
    assert {f.expert for of_text in report.findings for f in of_text} == {"ocr"}
    assert reader.num_images == 1


def test_options_that_an_expert_does_not_take_are_named() -> None:
    with pytest.raises(ConfigError, match=r"options of 'function': missing a required argument: 'function'"):
        build_expert(ExpertConfig(kind="function"), CONFIG)
