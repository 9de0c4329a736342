"""Responses without Ray: assignment, seeds, numbering and drops."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vlgenrm_ray.curation.responses import (
    CHOSEN,
    REJECTED,
    GeneratorConfig,
    ResponsesConfig,
    generate_responses,
    import_responses,
    question_seed,
)
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import Unit
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.records import ImageRef, Question, Response


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> ImageRef:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.new("RGB", (16, 16)).save(path)
    return images.probe(str(path), ImageLimits())


def question(image: ImageRef, id: str = "q1", **more: str) -> Question:
    return Question(id=id, image=image, text=f"{id}?", source="test", **more)


def config(**more: object) -> GeneratorConfig:
    return GeneratorConfig.model_validate({"name": "policy", "engine": VllmConfig()} | more)


def generate(
    questions: list[Question], script: Mapping[str, str] | None = None, first: int = 0, **more: object
) -> list[Unit[Response]]:
    def random_words(prompt: Prompt, chance: random.Random) -> str:
        return " ".join(chance.choices("abc", k=3))

    generator = ScriptedGenerator(script if script is not None else random_words, max_chars=50)
    return generate_responses(questions, generator, config(**more), first=first, seed=7, limits=ImageLimits())


def test_responses_are_numbered_and_seeded(image: ImageRef) -> None:
    (unit,) = generate([question(image)], first=2, n=3)
    assert [r.id for r in unit.records] + [d.id for d in unit.dropped] == ["q1/r2", "q1/r3", "q1/r4"]
    for response in unit.records:
        assert response.seed == question_seed(7, "q1", "policy")
        assert (response.sampler, response.finish, response.num_tokens) == ("policy", "stop", 3)
    assert unit.num_tokens == 9


def test_responses_do_not_depend_on_the_batch(image: ImageRef) -> None:
    questions = [question(image, f"q{i}") for i in range(5)]
    together = {u.id: u for u in generate(questions)}
    alone = {q.id: generate([q])[0] for q in reversed(questions)}
    assert together == alone
    assert len({u.records[0].seed for u in together.values()}) == 5


def test_repeated_texts_are_dropped(image: ImageRef) -> None:
    (unit,) = generate([question(image)], {"q1": "A cat."}, n=3)
    assert [r.id for r in unit.records] == ["q1/r0"]
    assert [(d.id, d.reason, d.detail) for d in unit.dropped] == [
        ("q1/r1", "duplicate_text", "same as q1/r0"),
        ("q1/r2", "duplicate_text", "same as q1/r0"),
    ]


def test_a_cut_response_is_marked_and_an_empty_one_dropped(image: ImageRef) -> None:
    cut, empty = generate([question(image, "q1"), question(image, "q2")], {"q1": "a b c d"}, n=1, max_tokens=2)
    assert (cut.records[0].text, cut.records[0].finish) == ("a b", "length")
    assert [(d.reason, d.detail) for d in empty.dropped] == [("empty_text", "finish: stop")]


def test_a_bad_image_or_a_refused_prompt_affects_only_its_question(image: ImageRef, tmp_path: Path) -> None:
    lost = ImageRef(uri=str(tmp_path / "lost.png"), sha256="0", width=1, height=1)
    good, missing, long = generate(
        [question(image), question(lost, "q2"), question(image, "q" * 60)], {"q": "Yes."}, n=2
    )
    assert [r.text for r in good.records] == ["Yes."]
    assert [(d.id, d.reason) for d in missing.dropped] == [("q2/r0", "image_missing"), ("q2/r1", "image_missing")]
    assert [d.reason for d in long.dropped] == ["prompt_too_long"] * 2


def test_questions_with_responses_are_not_assigned(image: ImageRef) -> None:
    pair = question(image, chosen="A cat.", rejected="A dog.")
    unit = import_responses(pair)
    assert [(r.id, r.text, r.sampler) for r in unit.records] == [
        ("q1/r0", "A cat.", CHOSEN),
        ("q1/r1", "A dog.", REJECTED),
    ]
    assert not config().is_assigned(pair, 0)
    assert import_responses(question(image)) == Unit(id="q1")
    assert [d.reason for d in import_responses(question(image, chosen="A cat.", rejected="")).dropped] == ["empty_text"]


@settings(max_examples=20)
@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_a_larger_share_contains_the_smaller_one(share: float, seed: int) -> None:
    image = ImageRef(uri="", sha256="", width=1, height=1)
    questions = [question(image, f"q{i}") for i in range(200)]
    some = {q.id for q in questions if config(share=share / 2).is_assigned(q, seed)}
    more = {q.id for q in questions if config(share=share).is_assigned(q, seed)}
    assert some <= more
    assert abs(len(more) / 200 - share) < 0.2


def test_invalid_settings_are_named() -> None:
    with pytest.raises(ValidationError, match="all 4 responses are the same; set n to 1"):
        config(temperature=0.0, n=4)
    with pytest.raises(ValidationError, match="two generators are named 'policy'"):
        ResponsesConfig(generators=(config(), config()))
    with pytest.raises(ValidationError, match="at least 1 item"):
        ResponsesConfig(generators=())
    with pytest.raises(ValidationError, match="pattern"):
        config(name="imported/chosen")
