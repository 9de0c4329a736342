"""Claims by a language model: placed in the text, checked by the grammar, never a denial turned into a statement."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.expert import ClaimsConfig
from vlgenrm_ray.experts.lexicon import english
from vlgenrm_ray.experts.llm_claims import ListedClaims, LlmClaimsExpert, merge_claims, parse_answer
from vlgenrm_ray.experts.pipeline import ExpertPipeline, expert_configs
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim

COCO = load_vocabulary("coco")
CONFIG = ExpertsConfig(detector=DetectorConfig(model="none"), claims=ClaimsConfig(extractor="llm", model="none"))
DATA = Path(__file__).parents[1] / "data"
FRAMES: dict[str, list[str]] = yaml.safe_load((DATA / "denying_frames.yaml").read_text())
CORPUS: list[dict[str, Any]] = yaml.safe_load((DATA / "claims_corpus.yaml").read_text())


def listed(span: str, kind: str = "existence", subject: str = "dog", **over: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "subject": subject,
        "value": "",
        "other": "",
        "negated": False,
        "hedged": False,
        "span": span,
    } | over


def merged(text: str, *claims: dict[str, Any], question: str = "") -> list[Claim]:
    answer = ListedClaims.model_validate({"claims": list(claims)})
    return list(merge_claims(text, question, extract_claims(text, COCO, question), answer, COCO))


def affirmed(text: str, *claims: dict[str, Any], question: str = "") -> set[tuple[str, str, str]]:
    return {
        (c.subject, c.value, c.other)
        for c in merged(text, *claims, question=question)
        if not c.hedged and not c.negated
    }


def test_the_model_adds_claims_from_sentences_with_unknown_words() -> None:
    text = "A dalmatian-like ambience surrounds a dog. A crimson automobile gleams to the left of a bus."
    assert affirmed(text) == set()
    text = "An ebullient dog gambols. A crimson automobile gleams to the left of a bus."
    assert affirmed(text) == set()
    affirmed_claims = affirmed(
        text,
        listed("An ebullient dog"),
        listed("A crimson automobile", subject="crimson automobile"),
        listed(
            "A crimson automobile gleams to the left of a bus",
            "spatial",
            "crimson automobile",
            value="to the left of",
            other="bus",
        ),
    )
    assert affirmed_claims == {("dog", "", ""), ("red car", "", ""), ("red car", "left of", "bus")}


@pytest.mark.parametrize(
    "claim",
    [
        listed("A cat sits"),
        listed("An ebullient dog", subject="cat"),
        listed("An ebullient dog", subject="gnome"),
        listed("An ebullient dog", "count", value="3"),
        listed("An ebullient dog", "count", value="several"),
        listed("An ebullient dog", "attribute", value="red"),
        listed("An ebullient dog", "spatial", value="left of", other="cat"),
        listed("An ebullient dog", "spatial", value="somewhere"),
        listed(""),
        listed("  "),
    ],
)
def test_a_claim_that_the_text_does_not_make_in_these_words_is_left_out(claim: dict[str, Any]) -> None:
    text = "An ebullient dog gambols."
    assert all(claim.hedged for claim in merged(text, claim))


def test_spans_are_those_of_the_text() -> None:
    text = "An ebullient dog gambols."
    (claim,) = merged(text, listed("ebullient dog"))
    assert text[claim.start : claim.end] == claim.text == "ebullient dog"
    assert not claim.hedged


def test_where_the_grammar_understands_a_statement_both_must_agree() -> None:
    text = "There is no dog. There is a cat."
    both = merged(text, listed("no dog"), listed("a cat", subject="cat"))
    assert [(c.subject, c.negated, c.hedged) for c in both] == [("dog", True, True), ("cat", False, False)]
    agreed = merged(text, listed("no dog", negated=True), listed("a cat", subject="cat", hedged=True))
    assert [(c.subject, c.negated, c.hedged) for c in agreed] == [("dog", True, False), ("cat", False, True)]


def test_what_the_question_or_the_text_takes_back_is_hedged() -> None:
    assert affirmed("An ebullient dog.", listed("An ebullient dog"), question="What is missing?") == set()
    assert affirmed("An ebullient dog. Just kidding.", listed("An ebullient dog")) == set()
    assert affirmed("An ebullient dog.", listed("An ebullient dog"), question="What do you see?") == {("dog", "", "")}


ADVERSARIES = [frame.format("there is a dog") for frame in FRAMES["clause_frames"]]
ADVERSARIES += [frame.format("a dog") for frame in FRAMES["phrase_frames"]]
ADVERSARIES += [
    text
    for group in CORPUS
    if group.get("vocabulary") == "coco" and group.get("may") == []
    for text in group["texts"]
    if "dog" in text and "remark" not in group["group"]
]


@pytest.mark.parametrize("text", ADVERSARIES)
def test_a_model_that_affirms_everything_affirms_no_denial(text: str) -> None:
    """The model lists "a dog" for every sentence of the corpora that denies, doubts, quotes or compares one."""
    span = "a dog" if "a dog" in text else "dog"
    question = text.partition("?")[0] + "?" if text.startswith("What") else ""
    assert ("dog", "", "") not in affirmed(text, listed(span), question=question)


@given(st.lists(st.sampled_from(english()["denials"]), min_size=1, max_size=2), st.booleans())
def test_a_listed_claim_beside_any_word_of_denial_is_hedged(words: list[str], before: bool) -> None:
    beside = " ".join(word.strip() for word in words)
    text = f"Zib {beside} zab an ebullient dog." if before else f"An ebullient dog zibs {beside} zab."
    assert affirmed(text, listed("ebullient dog")) == set()


claims_of_any_kind = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["existence", "count", "attribute", "spatial"]),
        "subject": st.sampled_from(["dog", "red car", "gnome", "", "dogs and cats"]),
        "value": st.sampled_from(["", "2", "red", "left of", "left", "many"]),
        "other": st.sampled_from(["", "cat", "gnome"]),
        "negated": st.booleans(),
        "hedged": st.booleans(),
        "span": st.sampled_from(["two red cars", "a dog", "dog left of", "cat", "", "x"]),
    }
)


@settings(max_examples=200)
@given(st.lists(claims_of_any_kind, max_size=5))
def test_whatever_the_model_lists_the_claims_are_valid(claims: list[dict[str, Any]]) -> None:
    text = "There are two red cars and a dog left of a cat, verily."
    for claim in merged(text, *claims):
        assert claim.text == text[claim.start : claim.end]
        assert COCO.phrase(claim.subject) is not None
        assert claim.kind.value != "count" or claim.value.isdigit()


# -- the expert --------------------------------------------------------------------------------------------------------


class FakeLlm:
    """Answers with fixed texts in turn."""

    def __init__(self, *answers: str | Refusal) -> None:
        self.answers = iter(answers)
        self.samplings: list[Sampling] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        self.samplings.append(sampling)
        answers = [next(self.answers) for _ in prompts]
        return [a if isinstance(a, Refusal) else [Sample(text=a, tokens=(), finish="stop")] for a in answers]


def test_without_a_readable_answer_the_grammar_reads_the_text() -> None:
    good = json.dumps({"claims": [listed("An ebullient dog")]})
    refusal = Refusal(reason=DropReason.PROMPT_TOO_LONG, detail="too long")
    llm = FakeLlm(good, good[:-3], "{}", refusal)
    expert = LlmClaimsExpert(CONFIG, generator=llm)
    text = "An ebullient dog gambols. There is a cat."
    task = ExpertPipeline(CONFIG).open_task("x", PIL.Image.new("RGB", (8, 8)), [text] * 4)
    (examined,) = expert.examine([task])
    subjects = [[c.subject for c in of_text if not c.hedged] for of_text in examined.claims]
    assert subjects == [["dog", "cat"], ["cat"], ["cat"], ["cat"]]
    assert examined.phrases == ("cat", "dog")
    schema = json.loads(llm.samplings[0].json_schema)
    assert schema["properties"]["claims"]["maxItems"] == 32
    assert expert.examine([]) == []


def test_a_cut_answer_is_no_answer() -> None:
    assert parse_answer([Sample(text='{"claims": [', tokens=(), finish="length")]) is None


def test_the_extractor_runs_first_and_needs_a_model() -> None:
    assert [e.kind for e in expert_configs(CONFIG)] == ["llm_claims", "detector"]
    assert CONFIG.actor_pools()[0] == CONFIG.claims.actors
    with pytest.raises(ValidationError, match=r"extractor 'llm' needs a model; set claims\.model"):
        ClaimsConfig(extractor="llm")
