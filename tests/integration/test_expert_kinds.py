"""Further kinds of experts on real engines: OCR on rendered text, a vision-language model through vLLM."""

import json

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.contracts import Prompt, Sampling
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.ocr import RapidOcrReader
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.experts.expert import ClaimsConfig, ExpertConfig
from vlgenrm_ray.experts.llm_claims import LlmClaimsExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline, build_expert, expert_configs
from vlgenrm_ray.records import Truth
from vlgenrm_ray.shapes import pack_path

CONFIG = ExpertsConfig(vocabulary="shapes", detector=DetectorConfig(model="none"))


def sign(*lines: str, size: tuple[int, int] = (480, 320)) -> PIL.Image.Image:
    """A grey image with a white sign that bears the lines."""
    image = PIL.Image.new("RGB", size, "gray")
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((30, 30, size[0] - 30, size[1] - 30), fill="white")
    for i, line in enumerate(lines):
        draw.text((60, 60 + 90 * i), line, font=PIL.ImageFont.load_default(size=56), fill="black")
    return image


@pytest.fixture(scope="module")
def reader() -> RapidOcrReader:
    return RapidOcrReader()


def test_rendered_text_is_read_with_its_place(reader: RapidOcrReader) -> None:
    stop, street, blank = reader.read([sign("STOP"), sign("Main Street", "OPEN 24"), PIL.Image.new("RGB", (64, 64))])
    assert [line.text for line in stop] == ["STOP"]
    assert [line.text for line in street] == ["Main Street", "OPEN 24"]
    assert blank == ()
    (line,) = stop
    assert 40 < line.box.x0 < 80
    assert 50 < line.box.y0 < line.box.y1 < 140
    assert line.box.score > 0.9


def test_claims_about_text_are_checked_on_the_pixels() -> None:
    expert = build_expert(ExpertConfig(kind="ocr", options={"threads": 1}), CONFIG)
    texts = ['The sign says "STOP".', 'The sign says "YIELD".', 'Perhaps the sign says "STOP".', "There is a star."]
    report = ExpertPipeline(CONFIG, [expert]).report(sign("STOP"), texts)
    truths = [finding.truth for of_text in report.findings for finding in of_text]
    assert truths == [Truth.SUPPORTED, Truth.CONTRADICTED, Truth.UNKNOWN, Truth.UNKNOWN]
    assert report.findings[0][0].boxes[0].label == "text"
    (unread,) = ExpertPipeline(CONFIG, [expert]).report(PIL.Image.new("RGB", (200, 200)), texts[:1]).findings[0]
    assert unread.truth is Truth.UNKNOWN


def test_a_vision_language_model_is_asked_through_vllm() -> None:
    options = {"model": str(pack_path("vlm")), "max_model_len": 512, "kv_cache_gib": 0.1, "kinds": ["attribute"]}
    expert = build_expert(ExpertConfig(kind="vlm", options=options), CONFIG)
    report = ExpertPipeline(CONFIG, [expert]).report(sign("STOP"), ["The circle is red.", "There is a star."])
    attribute, existence = (of_text[0] for of_text in report.findings)
    # The tiny model was never taught this prompt, so only the form of its answer is known.
    assert attribute.truth in Truth
    assert 0 <= attribute.score <= 1
    assert existence.truth is Truth.UNKNOWN, "only attributes are asked about"


def test_claims_are_listed_by_structured_output_of_vllm_and_checked_by_the_grammar() -> None:
    """The tiny model lists nonsense, but in the schema: what the grammar reads stands, and nothing else is affirmed."""
    options = {"max_model_len": 2048, "kv_cache_gib": 0.2}
    config = CONFIG.model_copy(
        update={"claims": ClaimsConfig(extractor="llm", model=str(pack_path("vlm")), options=options)}
    )
    expert = build_expert(expert_configs(config)[0], config)
    texts = ["There is a red circle.", "There is no star. A shiny square gleams.", "Hello."]
    task = ExpertPipeline(config).open_task("x", sign("STOP"), texts)
    (examined,) = expert.examine([task])
    read = [[(c.subject, c.negated) for c in of_text if not c.hedged] for of_text in examined.claims]
    by_grammar = [[(c.subject, c.negated) for c in of_text if not c.hedged] for of_text in task.claims]
    for of_model, of_grammar in zip(read, by_grammar, strict=True):
        assert {claim for claim in of_model if claim[1]} <= set(of_grammar)
    for text, claims in zip(texts, examined.claims, strict=True):
        assert all(claim.text == text[claim.start : claim.end] for claim in claims)
    # The raw output follows the schema: it parses, or was cut at the limit.
    assert isinstance(expert, LlmClaimsExpert)
    generator = VllmGenerator(VllmConfig(model=str(pack_path("vlm")), **options))
    schema = {
        "type": "object",
        "properties": {"claims": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2}},
        "required": ["claims"],
        "additionalProperties": False,
    }
    sampling = Sampling(temperature=0.0, max_tokens=200, json_schema=json.dumps(schema))
    ((sample,),) = generator.generate([Prompt(images=(), text="List the claims.")], sampling)
    parsed = json.loads(sample.text)
    assert list(parsed) == ["claims"]
    assert len(parsed["claims"]) <= 2
