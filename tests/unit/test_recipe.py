import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field

from vlgenrm_ray import recipe, settings
from vlgenrm_ray.config import CoTrainingConfig, PolicyRunConfig, RunConfig
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.reward import critiques
from vlgenrm_ray.settings import Settings, sections_of
from vlgenrm_ray.shapes import pack_path


class Engine(Settings):
    model: str
    threads: int = Field(1, ge=1)


class Stage(Settings):
    engine: Engine
    others: tuple[Engine, ...] = ()
    tau: float = Field(0.1, ge=0, le=1)


class Run(Settings):
    selection: Stage
    seed: int = 0


class Shared(Settings):
    renamed: ClassVar = {"start": "first"}
    inherits: ClassVar = {"first.engine": "engine", "second.engine": "engine"}

    engine: Engine
    first: Stage
    second: Stage = Stage(engine=Engine(model=""))


TEXT = """
seed: 3
selection:
  engine: {model: "pack:vlm"}
  others:
    - {model: a}
    - {model: b, threads: 2}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(TEXT)
    return file


def fails(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        recipe.load(Run, path, overrides)
    return str(caught.value)


def test_a_recipe_is_read_and_the_pack_found(path: Path) -> None:
    run = recipe.load(Run, path)
    assert (run.seed, run.selection.tau) == (3, 0.1)
    assert run.selection.engine.model == str(pack_path("vlm"))


def test_overrides_reach_into_sections_and_lists(path: Path) -> None:
    run = recipe.load(Run, path, ["selection.others.1.threads=5", "selection.tau=0.5", "seed=7"])
    assert run.selection.others[1] == Engine(model="b", threads=5)
    assert run.selection.others[0] == Engine(model="a")
    assert (run.selection.tau, run.seed) == (0.5, 7)


def test_a_dumped_value_reads_back_equal(path: Path, tmp_path: Path) -> None:
    run = recipe.load(Run, path)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.dump(run))
    assert recipe.load(Run, again) == run


def test_an_unknown_key_gets_the_nearest_name(path: Path) -> None:
    assert fails(path, "selection.tua=0.2") == "selection.tua: unknown key; did you mean 'tau'?"
    inside_a_list = fails(path, "selection.others.0.treads=2")
    assert inside_a_list == "selection.others.0.treads: unknown key; did you mean 'threads'?"
    assert "known keys here: seed, selection" in fails(path, "zzz=1")


def test_a_bad_value_names_field_value_and_remedy(path: Path) -> None:
    message = fails(path, "selection.tau=1.5")
    assert message == "selection.tau: got 1.5; input should be less than or equal to 1"


def test_all_mistakes_are_reported_at_once(path: Path) -> None:
    assert len(fails(path, "selection.tau=7", "seed=x").splitlines()) == 2


def test_a_mistake_in_a_shared_section_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("engine: {model: m, threads: 0}\nfirst: {}\nsecond: {}")
    with pytest.raises(ConfigError) as caught:
        recipe.load(Shared, file)
    assert str(caught.value) == "engine.threads: got 0; input should be greater than or equal to 1"


def test_an_override_by_a_settings_old_name_replaces_the_file_s_value(tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("engine: {model: m, threads: 2}\nfirst: {tau: 0.3}")
    with pytest.warns(FutureWarning, match="'start' is now 'first'"):
        shared = recipe.load(Shared, file, ["start.engine.threads=4"])
    assert (shared.first.engine.threads, shared.first.tau, shared.second.engine.threads) == (4, 0.3, 2)


@pytest.mark.parametrize("text", ["seed", "=3", "seed.deep=1", "selection.others.9.model=x", "seed=[1"])
def test_a_malformed_override_is_named(path: Path, text: str) -> None:
    assert text in fails(path, text)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in fails(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    assert "not YAML" in fails(broken)
    broken.write_text("- a")
    assert "mapping of sections" in fails(broken)
    broken.write_text("seed: 1")
    assert fails(broken) == "selection: required, but not set"


def shapes(*overrides: str) -> RunConfig:
    return recipe.load(RunConfig, shipped_recipe("shapes"), overrides)


def test_a_run_continues_with_other_resources_and_more_rounds(tmp_path: Path) -> None:
    recipe.claim(shapes(), tmp_path)
    others = ("critiques.actors.num_actors=3", "critiques.engine.max_num_seqs=7", "training.num_cpus=1")
    changed = shapes(*others, "rounds.num_rounds=5", "experts.actors.batch_size=4")
    recipe.claim(changed, tmp_path)
    assert recipe.load(RunConfig, tmp_path / "config.yaml") == changed, "the stored configuration is the present one"


def test_a_run_with_other_results_is_refused_by_the_names_of_the_settings(tmp_path: Path) -> None:
    recipe.claim(shapes(), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        recipe.claim(shapes("selection.tau=0.5", "training.num_cpus=1"), tmp_path)
    message = str(caught.value)
    assert re.search(r"selection\.tau: 0\.\d+ there, 0\.5 now", message)
    assert "num_cpus" not in message
    assert "--run" in message
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize("content", ["seed: [", "unknown: 1", "[]", ""])
def test_a_stored_configuration_that_cannot_be_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match="cannot be read by this version"):
        recipe.claim(shapes(), tmp_path)


def test_a_run_continues_from_another_installation_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.claim(shapes(), tmp_path / "run")
    assert str(Path(settings.__file__).parent) not in (tmp_path / "run" / "config.yaml").read_text()
    fingerprint = shapes().fingerprint()
    elsewhere = tmp_path / "elsewhere" / "vlgenrm_ray"
    monkeypatch.setattr(settings, "_PACKAGE", f"{elsewhere}/")
    monkeypatch.setattr("vlgenrm_ray.shapes._PACK", elsewhere / "shapes" / "pack")
    moved = shapes()
    assert moved.base.startswith(str(elsewhere))
    recipe.claim(moved, tmp_path / "run")
    assert moved.fingerprint() == fingerprint


@pytest.mark.parametrize(
    "override",
    ["critiques.actors.batch_size=3", "critiques.engine.gpu_memory_utilization=0.5", "critiques.engine.threads=3"],
)
def test_operational_settings_do_not_change_a_stage_s_fingerprint(override: str) -> None:
    before, after = shapes(), shapes(override)
    assert before.critiques != after.critiques
    fingerprints = {critiques.fingerprint(config.critiques, config.judge, 1) for config in (before, after)}
    assert len(fingerprints) == 1


def test_settings_that_change_results_change_the_fingerprint() -> None:
    assert shapes().fingerprint() != shapes("critiques.engine.dtype=bfloat16").fingerprint()


def test_operational_settings_exist() -> None:
    """A renamed setting must not lose its place among the operational ones."""

    def sections(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield cls
        for field in cls.model_fields.values():
            for section in sections_of(field.annotation):
                yield from sections(section)

    for cls in (RunConfig, PolicyRunConfig, CoTrainingConfig):
        for section in sections(cls):
            if issubclass(section, Settings):
                assert section.all_operational() <= set(section.model_fields), section
