"""The selection stage on units: examples, drops, failures, metrics, settings."""

from pathlib import Path

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray import recipe
from vlgenrm_ray.data.shard_files import add_sums
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Critique, Dropped, Example, ExampleKind, Preference, Side
from vlgenrm_ray.reward.examples import JudgeTemplates
from vlgenrm_ray.reward.rejection_sampling import Strategy
from vlgenrm_ray.reward.selection import (
    SelectionConfig,
    count_selection,
    pair_failures,
    select_examples,
    selection_metrics,
)
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker

TEMPLATES = JudgeTemplates(critique=prompts.load("shapes_cot"), direct=prompts.load("shapes_direct"))
CHECKER = CritiqueChecker.from_vocabulary("shapes", Thresholds())
CONFIG = SelectionConfig(tau=0.3)


def critique(
    preference: Preference, side: Side, index: int, p_yes: float | None, image: str = "", claim: str = ""
) -> Critique:
    """A critique with the likelier verdict; without p_yes it is unreadable."""
    word = None if p_yes is None else "yes" if p_yes >= 0.5 else "no"
    assessment = "Wrong" if claim and word == "no" else "Right"
    line = f"Claim: {claim or index}. Image: {image or 'hard to say'}. {assessment}."
    return factories.critique(
        f"{preference.id}/{side.value}/c{index}",
        preference_id=preference.id,
        side=side,
        text=f"{line}\nVerdict: {word.capitalize()}\n\n" if word else line,
        verdict=word,
        p_yes=p_yes,
    )


def pair(id: str = "q0/p0", **over: str) -> Preference:
    return factories.preference(id, detections=(factories.detection(),), **over)


def unit(chosen: list[float | None], rejected: list[float | None], id: str = "q0/p0") -> Unit[Critique]:
    preference = pair(id)
    records = [critique(preference, Side.CHOSEN, i, p) for i, p in enumerate(chosen)]
    records += [critique(preference, Side.REJECTED, i, p) for i, p in enumerate(rejected)]
    return Unit(id=id, records=tuple(records))


def select(
    unit: Unit[Critique], config: SelectionConfig = CONFIG, preference: Preference | None = None
) -> Unit[Example]:
    return select_examples(unit, preference or pair(unit.id), config, TEMPLATES, CHECKER)


def test_a_pair_becomes_two_critiques_two_direct_verdicts_and_an_answer() -> None:
    selected = select(unit([0.9, 0.6], [0.2]))
    assert [e.id for e in selected.records] == [
        "q0/p0/chosen/c0/example",
        "q0/p0/rejected/c0/example",
        "q0/p0/chosen/direct",
        "q0/p0/rejected/direct",
        "q0/p0/chosen/answer",
    ]
    yes, no, direct_yes, direct_no, answer = selected.records
    question, chosen, rejected = "Is there a red circle?", "Yes, there is a red circle.", "No, there is no red circle."
    assert yes.prompt == prompts.render(prompts.load("shapes_cot"), question, chosen)
    assert no.prompt == prompts.render(prompts.load("shapes_cot"), question, rejected)
    assert yes.completion == "Claim: 0. Image: hard to say. Right.\nVerdict: Yes"
    assert no.completion.endswith("Verdict: No")
    assert direct_yes.prompt == prompts.render(prompts.load("shapes_direct"), question, chosen)
    assert [(e.label, e.completion) for e in (direct_yes, direct_no)] == [("yes", "Yes"), ("no", "No")]
    assert (answer.prompt, answer.completion, answer.label) == (question, chosen, "")
    assert [e.weight for e in selected.records] == [1.0, 1.0, 0.5, 0.5, 0.1]
    assert [e.label for e in selected.records] == ["yes", "no", "yes", "no", ""]


@pytest.mark.parametrize(
    ("chosen", "rejected", "strata"),
    [
        ("There are three red stars.", "There is one red star.", ("count 3", "count 1")),
        ("The star is red.", "The star is blue.", ("attribute red", "attribute blue")),
        ("Yes, there is a star.", "No, there is no star.", ("existence", "existence denied")),
        ("There is a red star at the centre.", "It is nice.", ("", "")),
    ],
)
def test_judgements_have_the_stratum_of_their_response(chosen: str, rejected: str, strata: tuple[str, str]) -> None:
    preference = pair(chosen=chosen, rejected=rejected)
    records = (critique(preference, Side.CHOSEN, 0, 0.9), critique(preference, Side.REJECTED, 0, 0.1))
    examples = select(Unit(id=preference.id, records=records), preference=preference).records
    labelled = {(e.label, e.stratum) for e in examples if e.kind is not ExampleKind.ANSWER}
    assert labelled == set(zip(("yes", "no"), strata, strict=True))
    assert [e.stratum for e in examples if e.kind is ExampleKind.ANSWER] == [""]


def test_examples_of_weight_0_are_left_out() -> None:
    config = SelectionConfig(tau=0.3, top_n=2, w_direct=0.0, lambda_answer=0.0)
    selected = select(unit([0.9, 0.8], [0.2, 0.1]), config)
    assert [e.kind for e in selected.records] == [ExampleKind.CRITIQUE] * 4


def test_a_judge_without_rationales_learns_both_verdicts_of_every_pair() -> None:
    # Its critiques are bare words, wrong ones included; nothing in them is selected.
    bare = unit([0.9], [0.8])
    config = CONFIG.model_copy(update={"w_direct": 0.0, "lambda_answer": 0.0})
    examples = select_examples(bare, pair(bare.id), config, TEMPLATES, CHECKER, "direct")
    assert [(e.kind, e.label, e.completion, e.weight) for e in examples.records] == [
        (ExampleKind.DIRECT, "yes", "Yes", 1.0),
        (ExampleKind.DIRECT, "no", "No", 1.0),
    ]
    assert examples.dropped == ()
    refused = Unit(id="q1/p0", dropped=(Dropped(stage="critiques", id="q1/p0", reason="prompt_too_long"),))
    assert select_examples(refused, pair("q1/p0"), config, TEMPLATES, CHECKER, "direct").records == ()


def test_direct_verdicts_and_answers_come_once_however_many_critiques() -> None:
    selected = select(unit([0.9, 0.8], [0.2, 0.1]), SelectionConfig(top_n=2))
    assert sum(e.kind is ExampleKind.ANSWER for e in selected.records) == 1
    assert sum(e.kind is ExampleKind.DIRECT for e in selected.records) == 2


side = st.lists(st.none() | st.integers(0, 10).map(lambda n: n / 10), max_size=4)


@given(side, side, st.sampled_from(Strategy), st.integers(0, 10).map(lambda n: n / 10))
def test_every_unit_and_critique_is_used_or_dropped(
    chosen: list[float | None], rejected: list[float | None], strategy: Strategy, tau: float
) -> None:
    criticised = unit(chosen, rejected)
    if not criticised.records:
        criticised = Unit(id="q0/p0", dropped=(Dropped(stage="critiques", id="q0/p0", reason="engine_error"),))
    selected = select(criticised, SelectionConfig(strategy=strategy, tau=tau, top_n=2))
    dropped_ids = {d.id for d in selected.dropped}
    assert bool(selected.records) != ("q0/p0" in dropped_ids)
    selected_ids = {e.id.removesuffix("/example") for e in selected.records if e.kind is ExampleKind.CRITIQUE}
    assert selected_ids | (dropped_ids - {"q0/p0"}) == {c.id for c in criticised.records}
    assert not selected_ids & dropped_ids


def test_a_pair_without_critiques_keeps_its_reason() -> None:
    refused = Dropped(stage="critiques", id="q0/p0", reason="image_missing", detail="gone.png")
    (dropped,) = select(Unit(id="q0/p0", dropped=(refused,))).dropped
    assert (dropped.stage, dropped.id, dropped.reason) == ("selection", "q0/p0", "image_missing")
    assert "gone.png" in dropped.detail


def test_a_true_critique_is_selected_instead_of_a_contradicted_one() -> None:
    preference = pair()
    false = critique(preference, Side.CHOSEN, 0, 0.9, image="a blue star at the top left")
    true = critique(preference, Side.CHOSEN, 1, 0.8, image="a red circle at the top left")
    other = critique(preference, Side.REJECTED, 0, 0.1)
    selected = select(Unit(id=preference.id, records=(false, true, other)))
    assert selected.records[0].id == f"{true.id}/example"
    assert [(d.id, d.reason) for d in selected.dropped] == [(false.id, DropReason.CONTRADICTED_CRITIQUE)]
    unchecked = select_examples(
        Unit(id=preference.id, records=(false, true, other)), preference, CONFIG, TEMPLATES, None
    )
    assert unchecked.records[0].id == f"{false.id}/example"


def test_an_unfaithful_critique_is_no_example_for_any_margin() -> None:
    preference = pair()
    faithful = critique(preference, Side.REJECTED, 0, 0.2, claim="there is no red circle")
    unfaithful = critique(preference, Side.REJECTED, 1, 0.1, claim="there is a blue star")
    chosen = critique(preference, Side.CHOSEN, 0, 0.9, claim="there is a red circle")
    units = Unit(id=preference.id, records=(chosen, faithful, unfaithful))
    selected = select(units, SelectionConfig(check_claims=True))
    assert {e.id for e in selected.records if e.kind is ExampleKind.CRITIQUE} == {
        f"{chosen.id}/example",
        f"{faithful.id}/example",
    }
    assert [(d.id, d.reason) for d in selected.dropped] == [(unfaithful.id, DropReason.UNFAITHFUL_CRITIQUE)]
    assert f"{unfaithful.id}/example" in {e.id for e in select(units, CONFIG).records}


def test_pair_failures_name_the_pairs_without_examples() -> None:
    units = [
        unit([0.9], [0.1], "q0/p0"),
        unit([0.2], [0.1], "q0/p1"),
        unit([0.6], [0.4], "q0/p2"),
        unit([None], [0.1], "q0/p3"),
    ]
    reasons = pair_failures(select(u) for u in units)
    assert reasons == {
        "q0/p1": DropReason.WRONG_VERDICT,
        "q0/p2": DropReason.SMALL_MARGIN,
        "q0/p3": DropReason.UNREADABLE_VERDICT,
    }


def stage(path: Path, cls: type, units: list[Unit]) -> StageFolder:
    folder = StageFolder(path)
    folder.begin("settings", {})
    write_units(folder, cls, units)
    folder.finish(seconds=0.0)
    return folder


def test_metrics_of_a_selection() -> None:
    refused = Unit(id="q0/p9", dropped=(Dropped(stage="critiques", id="q0/p9", reason="engine_error"),))
    units = [
        unit([0.9, None], [0.15], "q0/p0"),
        unit([0.8], [0.15], "q0/p1"),
        unit([0.6], [0.15], "q0/p2"),
        refused,
    ]
    sums = [
        count_selection(
            select(u, SelectionConfig(tau=0.5)),
            u.records,
            "spatial" if u.id == "q0/p1" else "count",
            scale=CONFIG.margin,
            min_mass=0.0,
        )
        for u in units
    ]
    metrics = selection_metrics(add_sums(sums))
    assert (metrics["num_pairs"], metrics["num_pairs_kept"]) == (3, 2)
    assert metrics["kept_share"] == pytest.approx(2 / 3)
    assert metrics["by_kind"] == {
        "count": {"num_pairs": 2, "num_pairs_kept": 1},
        "spatial": {"num_pairs": 1, "num_pairs_kept": 1},
    }
    assert metrics["pairs_dropped"] == {"engine_error": 1, "small_margin": 1}
    assert metrics["critiques_dropped"] == {"small_margin": 2, "unreadable_verdict": 1}
    assert metrics["examples"] == {"answer": 2, "critique": 4, "direct": 4}
    # Margins 0.75, 0.65 and 0.45; a bin is a tenth wide and the first begins at -1.
    assert [index for index, count in enumerate(metrics["margin_histogram"]) for _ in range(count)] == [14, 16, 17]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"tau": 1.2}, ["tau", "1.2", "less than or equal to 1"]),
        ({"tau": -0.1}, ["tau", "-0.1", "greater than or equal to 0"]),
        ({"top_n": 0}, ["top_n", "0", "greater than or equal to 1"]),
        ({"strategy": "best"}, ["strategy", "best", "'mrs'", "'random_correct'"]),
        ({"taw": 0.1}, ["taw", "did you mean 'tau'"]),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        recipe.build(SelectionConfig, values)
    for part in parts:
        assert part in str(raised.value)
