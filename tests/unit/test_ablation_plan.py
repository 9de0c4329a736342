"""Cells of an ablation, the stages that they share, and mistakes in its recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlgenrm_ray.ablation import config as ablation_config
from vlgenrm_ray.ablation.config import AblationConfig
from vlgenrm_ray.ablation.plan import CellPlan, count_stages, plan_cells, select_cells
from vlgenrm_ray.ablation.run import plan_all
from vlgenrm_ray.entrypoints import RECIPES
from vlgenrm_ray.errors import ConfigError

FACTORS = {
    "labels": {"experts": {}, "self": {"labels": "self"}, "truth": {"labels": "truth"}},
    "mode": {"cot": {}, "direct": {"overrides": ["judge.mode=direct"]}},
    "selection": {"mrs": {}, "all": {"overrides": ["selection.strategy=keep_all"]}},
    "check": {"on": {}, "off": {"overrides": ["selection.check_evidence=false"]}},
}
TRUTH = "vlgenrm_ray.shapes.world:response_is_true"


def recipe_file(folder: Path, **changes: Any) -> Path:
    values = {
        "recipe": str(RECIPES / "shapes.yaml"),
        "factors": FACTORS,
        "test": {"source": "shapes", "split": "test", "count": 20},
        "num_examples": 32,
        "num_steps": 4,
        "truth": TRUTH,
    }
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def load(folder: Path, *overrides: str, **changes: Any) -> AblationConfig:
    return ablation_config.load(recipe_file(folder, **changes), overrides)


def plans_by_name(config: AblationConfig) -> dict[str, CellPlan]:
    return {plan.cell.name: plan for plan in plan_all(config)}


def test_cells_around_the_reference_differ_from_it_in_one_factor(tmp_path: Path) -> None:
    cells = plan_cells(load(tmp_path))
    assert [cell.name for cell in cells] == [
        "reference",
        "labels=self",
        "labels=truth",
        "mode=direct",
        "selection=all",
        "check=off",
    ]
    other = plan_cells(load(tmp_path, reference={"mode": "direct"}))
    assert (other[0].variants["mode"], other[3].name) == ("direct", "mode=cot")


def test_a_product_has_every_combination_and_a_list_its_entries_in_order(tmp_path: Path) -> None:
    assert len(plan_cells(load(tmp_path, cells="product"))) == 3 * 2 * 2 * 2
    listed = plan_cells(load(tmp_path, cells=[{"selection": "all", "check": "off"}, {}, {"labels": "self"}]))
    assert [cell.name for cell in listed] == ["reference", "selection=all check=off", "labels=self"]


def test_cells_of_equal_settings_share_their_stages(tmp_path: Path) -> None:
    plans = plans_by_name(load(tmp_path))
    reference = plans["reference"]
    for name in ("labels=self", "labels=truth", "selection=all", "check=off", "mode=direct"):
        assert plans[name].preferences == reference.preferences, name
        assert plans[name].test == reference.test, name
    # The base model's critiques are those of every cell that asks it in the same way, whatever the labels are.
    same = ("labels=self", "labels=truth", "selection=all", "check=off")
    assert {plans[name].rounds[0].critiques for name in same} == {reference.rounds[0].critiques}
    assert {plans[name].base_evaluation for name in same} == {reference.base_evaluation}
    assert plans["mode=direct"].rounds[0].critiques != reference.rounds[0].critiques
    # From the labels or the selection on, every cell has stages of its own.
    assert len({plan.rounds[0].training for plan in plans.values()}) == len(plans)
    assert len({plan.rounds[0].evaluation for plan in plans.values()}) == len(plans)
    run, unshared = count_stages(list(plans.values()))
    assert run < unshared


def test_labels_of_the_judge_are_made_anew_in_every_round(tmp_path: Path) -> None:
    plans = plans_by_name(load(tmp_path, rounds=3))
    assert len({stage.labels for stage in plans["labels=self"].rounds}) == 3
    assert {stage.labels for stage in plans["reference"].rounds} == {plans["reference"].preferences}
    assert len({stage.critiques for stage in plans["reference"].rounds}) == 3


def test_seeds_share_the_test_pairs_and_nothing_that_is_drawn(tmp_path: Path) -> None:
    first, second = (p for p in plan_all(load(tmp_path, seeds=[0, 1])) if p.cell.name == "reference")
    shared = set(first.addresses()) & set(second.addresses())
    assert shared == {first.test_pool, first.test, first.base_evaluation}
    assert (second.config.seed, second.config.selection.seed, second.config.training.seed) == (1, 1, 1)
    assert second.config.judge.seed == 1
    assert second.evaluation_judge == first.evaluation_judge


def test_all_cells_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    seeds = [plan.seed for plan in plan_all(load(tmp_path, seeds=[4, 2]))]
    assert seeds == [4] * 6 + [2] * 6


def test_every_cell_has_equal_examples_and_steps(tmp_path: Path) -> None:
    for plan in plan_all(load(tmp_path, cells="product")):
        assert (plan.num_examples, plan.config.training.max_steps) == (32, 4)
        # However few the examples are, the epochs do not end the training before its last step.
        assert plan.config.training.epochs >= 4


def test_more_rounds_continue_those_of_a_cell_with_fewer(tmp_path: Path) -> None:
    factors = {"rounds": {"one": {}, "three": {"rounds": 3}}}
    plans = plans_by_name(load(tmp_path, factors=factors, truth=""))
    assert plans["rounds=three"].rounds[0] == plans["reference"].rounds[0]


def test_settings_that_do_not_change_results_do_not_change_addresses(tmp_path: Path) -> None:
    before = plan_all(load(tmp_path))[0]
    after = plan_all(load(tmp_path, "recipe.actors.num_actors=1", "recipe.training.num_cpus=2"))[0]
    assert after.addresses() == before.addresses()
    other = plan_all(load(tmp_path, "recipe.judge.max_tokens=99"))[0]
    assert other.preferences == before.preferences
    assert other.rounds[0].critiques != before.rounds[0].critiques


def test_a_longer_recipe_finds_the_results_of_a_shorter_one(tmp_path: Path) -> None:
    short = plan_all(load(tmp_path, cells=[{"labels": "self"}]))
    long = plan_all(load(tmp_path, cells="product", seeds=[0, 1]))
    assert {plan.key for plan in short} <= {plan.key for plan in long}


def test_cells_are_selected_by_name_or_pattern(tmp_path: Path) -> None:
    cells = plan_cells(load(tmp_path))
    assert [cell.name for cell in select_cells(cells, ["labels=*", "reference"])] == [
        "reference",
        "labels=self",
        "labels=truth",
    ]
    assert select_cells(cells, []) == cells
    with pytest.raises(ConfigError, match="'label' matches no cell; the cells are 'reference'"):
        select_cells(cells, ["label"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"truth": ""}, "a variant has labels: truth; name the function in truth"),
        ({"reference": {"mood": "cot"}}, "reference: 'mood' is no factor; choose from labels, mode"),
        ({"cells": [{"mode": "cod"}]}, "cells.0: 'cod' is no variant of 'mode'; choose from cot, direct"),
        ({"seeds": [1, 1]}, "a seed is listed twice"),
        ({"factors": {"a": {}}}, "factor 'a' has no variant"),
        ({"factors": {"a": {"b": {"overrides": ["judge.mode"]}}}}, "this is no override; write a.b=value"),
        ({"factors": {"a": {"b": {"trainer": "sft"}}}}, "'sft' is unknown; choose from"),
        ({"factors": {"a": {"b": {"override": []}}}}, "unknown key; did you mean 'overrides'?"),
        (
            {"factors": {"a": {"x": {}, "y": {"rounds": 2}}, "b": {"z": {"rounds": 3}}}},
            "factors 'a' and 'b' both state 'rounds'",
        ),
    ],
)
def test_a_mistake_in_the_recipe_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **changes)
    assert words in str(caught.value)


def test_a_mistake_in_a_variants_override_names_the_cell(tmp_path: Path) -> None:
    factors = {"tau": {"none": {}, "high": {"overrides": ["selection.taw=0.5"]}}}
    with pytest.raises(ConfigError, match=r"cell 'tau=high': selection\.taw: unknown key; did you mean 'tau'"):
        plan_all(load(tmp_path, factors=factors))


class HeadTrainer:
    """A trainer whose judge writes no critiques."""

    is_generative = False


def test_a_judge_that_writes_no_critiques_has_one_round_and_no_base(tmp_path: Path) -> None:
    factors = {"trainer": {"supervised": {}, "head": {"trainer": f"{__name__}:HeadTrainer"}}}
    plan = plans_by_name(load(tmp_path, factors=factors))["trainer=head"]
    assert plan.base_evaluation == ""
    with pytest.raises(ConfigError, match="makes no judge that writes critiques, so there is no second round"):
        plan_all(load(tmp_path, factors=factors, rounds=2))


def test_a_discriminative_judge_learns_from_the_pairs_and_has_neither_critiques_nor_a_selection(tmp_path: Path) -> None:
    factors = {"judge": {"cot": {}, "head": {"overrides": ["training.objective=bradley_terry"]}}, **FACTORS}
    del factors["mode"]
    plans = plans_by_name(load(tmp_path, factors=factors))
    head, reference = plans["judge=head"], plans["reference"]
    assert head.config.judge.is_discriminative
    assert (head.base_evaluation, head.rounds[0].critiques, head.rounds[0].selection) == ("", "", "")
    assert head.rounds[0].labels == reference.preferences
    assert head.test == reference.test
    assert head.rounds[0].examples.startswith("pairs-")
    with pytest.raises(ConfigError, match="a discriminative judge has no critiques, which labels: self needs"):
        plan_all(load(tmp_path, factors=factors, cells=[{"judge": "head", "labels": "self"}]))


def test_the_resolved_recipe_is_complete(tmp_path: Path) -> None:
    config = load(tmp_path, "recipe.pool.count=40")
    assert isinstance(config.recipe, dict)
    again = AblationConfig.model_validate(json.loads(config.model_dump_json()))
    assert [plan.key for plan in plan_all(again)] == [plan.key for plan in plan_all(config)]
