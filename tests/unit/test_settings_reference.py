"""The generated reference of all settings and the JSON schemas of recipes are complete and current."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from vlgenrm_ray import cli, settings_reference
from vlgenrm_ray.config import CoTrainingConfig, PolicyRunConfig, RunConfig
from vlgenrm_ray.settings import Settings
from vlgenrm_ray.settings_reference import RECIPES, count_settings, settings_of

JOBS = Path(__file__).parents[2] / "jobs"
KINDS = {
    "reward": ("shapes", "qwen3_vl_4b", "qwen2_5_vl_7b"),
    "policy": ("shapes_grpo", "shapes_ppo", "shapes_dpo", "qwen3_vl_4b_grpo"),
    "co_training": ("shapes_co_training",),
    "ablation": ("ablation", "ablation_small"),
}


def test_the_reference_is_current() -> None:
    current = (JOBS / "SETTINGS.md").read_text()
    assert current == settings_reference.markdown(), "run: vlgenrm settings --markdown > jobs/SETTINGS.md"


@pytest.mark.parametrize("kind", RECIPES)
def test_the_schema_is_current(kind: str) -> None:
    path = JOBS / "recipes" / "schema" / f"{kind}.json"
    assert path.read_text() == settings_reference.json_schema(kind), f"run: vlgenrm settings {kind} --schema > {path}"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_shipped_recipes_name_their_schema_and_follow_it(kind: str, name: str) -> None:
    text = (JOBS / "recipes" / f"{name}.yaml").read_text()
    assert text.startswith(f"# yaml-language-server: $schema=schema/{kind}.json\n")
    schema = json.loads(settings_reference.json_schema(kind))
    assert [error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(text))] == []


def test_every_setting_has_a_meaning() -> None:
    missing = {s.path for _, cls in RECIPES.values() for s in settings_of(cls) if not s.description}
    assert missing == set()


def test_inherited_settings_name_their_source_and_are_not_repeated() -> None:
    by_path = {setting.path: setting for setting in settings_of(RunConfig)}
    assert by_path["critiques.engine"].inherits == "engine"
    assert by_path["responses.generators.*.engine"].inherits == "engine"
    assert not any(path.startswith("critiques.engine.") for path in by_path)
    assert by_path["training.engine.zero_stage"].type_name == "`0`, `1`, `2`, `3`"


def test_recipes_have_few_settings_of_their_own() -> None:
    assert count_settings(RunConfig) <= 215
    assert count_settings(PolicyRunConfig) <= 190
    assert count_settings(CoTrainingConfig) <= 350


def sections() -> Iterator[type[Settings]]:
    """Yield the class of every section of every recipe."""
    for _, cls in RECIPES.values():
        yield cls
        yield from (setting.section for setting in settings_of(cls) if setting.section is not None)


def test_the_guide_lists_every_renamed_and_removed_setting_and_no_other() -> None:
    _, _, guide = (JOBS / "README.md").read_text().partition("## Old recipes")
    names_of_rows = [
        [re.findall(r"`([\w.]+)`", cell) for cell in line.strip("| ").split(" | ")]
        for line in guide.splitlines()
        if line.startswith("| `") or line.startswith("| top")
    ]
    renamed_table = guide.partition("These keys are gone.")[0]
    num_renamed = sum(line.startswith(("| `", "| top")) for line in renamed_table.splitlines())
    listed = {(old, new[0]) for _, (old,), new in names_of_rows[:num_renamed]}
    assert listed == {pair for section in sections() for pair in section.all_renamed().items()}
    removed = {name for section in sections() for name in section.all_removed()}
    assert {name for _, names, _ in names_of_rows[num_renamed:] for name in names} == removed


def test_no_setting_has_the_name_of_a_renamed_one() -> None:
    for section in sections():
        assert not set(section.all_renamed()) & set(section.model_fields), section


def test_the_command_prints_settings_reference_and_schema() -> None:
    def output(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["settings", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "selection.tau: number, >= 0, <= 1" in output("reward")
    assert output("--markdown").startswith("# Settings")
    assert json.loads(output("policy", "--schema"))["title"] == "Recipe of `vlgenrm policy`"
    assert CliRunner().invoke(cli.app, ["settings", "nothing"]).exit_code == 2
