"""The base of configuration sections: renamed settings, inherited settings, defaults of a place."""

from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from vlgenrm_ray.settings import ANY_VALUE, RemovedSetting, Settings


class Section(Settings):
    renamed: ClassVar = {"patience": "retry"}

    retry: int = 3


class Engine(Settings):
    renamed: ClassVar = {"length": "max_len"}

    model: str = ""
    max_len: int = 10
    extra: dict[str, int] = Field(default_factory=dict)


class Pruned(Settings):
    renamed: ClassVar = {"cache": "extra.cache"}
    removed: ClassVar = {
        "seed": RemovedSetting(0, "set extra: {seed: ...}"),
        "limits": RemovedSetting({"rows": 8, "bytes": 64}, "serve it elsewhere"),
        "labels": RemovedSetting(ANY_VALUE, "remove it"),
    }

    extra: dict[str, object] = Field(default_factory=dict)


class Linked(Settings):
    inherits: ClassVar = {"other": "usual"}

    usual: Engine = Engine(max_len=30)
    other: Engine = Engine()


class Stage(Settings):
    engine: Engine = Engine()
    seed: int | None = None


class Generators(Settings):
    entries: tuple[Stage, ...] = ()


class Recipe(Settings):
    inherits: ClassVar = {
        "engine.model": "base",
        "generators.entries.*.engine": "engine",
        "first.engine": "engine",
        "second.engine": "first.engine",
        "optional.engine": "engine",
        "first.seed": "seed",
    }

    base: str
    seed: int = 5
    engine: Engine = Engine()
    generators: Generators = Generators()
    first: Stage = Stage()
    second: Stage = Stage()
    optional: Stage | None = None
    fast: Engine = Engine(max_len=99)


def recipe(**values: object) -> Recipe:
    return Recipe.model_validate({"base": "b"} | values)


def test_an_old_name_is_read_with_a_warning_that_names_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="'patience' is now 'retry'"):
        assert Section.model_validate({"patience": 5}) == Section(retry=5)


def test_a_subclass_adds_to_the_old_names_of_its_base() -> None:
    class Longer(Section):
        renamed: ClassVar = {"size": "length"}

        length: int = 0

    with pytest.warns(FutureWarning, match="Longer"):
        assert Longer.model_validate({"patience": 5, "size": 2}) == Longer(retry=5, length=2)


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="'patience' is the old name of 'retry', and both are set"):
        Section.model_validate({"patience": 5, "retry": 4})


def test_an_old_name_may_have_become_a_key_of_a_mapping() -> None:
    with pytest.warns(FutureWarning, match=r"'cache' is now 'extra\.cache'"):
        assert Pruned.model_validate({"cache": 3, "extra": {"a": 1}}).extra == {"a": 1, "cache": 3}
    with pytest.warns(FutureWarning):
        assert Pruned.model_validate({"cache": None}).extra == {}
    with pytest.raises(ValidationError, match="both are set"):
        Pruned.model_validate({"cache": 3, "extra": {"cache": 4}})


@pytest.mark.parametrize("stated", [{"seed": 0}, {"limits": {"rows": 8}}, {"limits": {}}, {"labels": True}])
def test_a_removed_setting_may_state_what_is_fixed_now(stated: dict[str, object]) -> None:
    with pytest.warns(FutureWarning, match=f"'{next(iter(stated))}' .Pruned. is no longer one"):
        assert Pruned.model_validate(stated) == Pruned()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"seed": 5}, r"'seed: 5' is no longer a setting; set extra"),
        ({"limits": {"rows": 9}}, "serve it elsewhere"),
        ({"limits": {"columns": 1}}, "serve it elsewhere"),
        ({"limits": None}, "serve it elsewhere"),
    ],
)
def test_another_value_of_a_removed_setting_is_refused_with_the_remedy(stated: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Pruned.model_validate(stated)


def test_a_subclass_may_have_a_setting_that_its_base_removed(recwarn: pytest.WarningsRecorder) -> None:
    class Seeded(Pruned):
        seed: int = 0

    assert Seeded.model_validate({"seed": 5}).seed == 5
    assert not recwarn.list


def test_the_defaults_of_a_place_are_inherited_too() -> None:
    assert Linked().other.max_len == 30
    assert Linked.model_validate({"usual": {"model": "m"}}).other == Engine(model="m", max_len=30)
    assert Linked.model_validate({"other": {"max_len": 4}}).other.max_len == 4


def test_settings_that_a_section_lacks_are_not_inherited_by_it() -> None:
    class Small(Settings):
        model: str = ""

    class SmallStage(Settings):
        engine: Small = Small()

    class Outer(Settings):
        inherits: ClassVar = {"small": "stage"}

        stage: Stage = Stage()
        small: SmallStage = SmallStage()

    outer = Outer.model_validate({"stage": {"engine": {"model": "m", "max_len": 7}, "seed": 1}})
    assert outer.small == SmallStage(engine=Small(model="m"))


def test_a_present_name_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert Section.model_validate({"retry": 4}).retry == 4
    assert not recwarn.list


def test_a_section_inherits_what_it_leaves_out() -> None:
    run = recipe(engine={"max_len": 7, "extra": {"a": 1}}, first={"engine": {"extra": {"b": 2}}})
    assert run.first.engine == Engine(model="b", max_len=7, extra={"b": 2})
    assert run.second.engine == run.first.engine


def test_every_entry_of_a_list_inherits() -> None:
    run = recipe(engine={"max_len": 7}, generators={"entries": [{"engine": {"model": "m"}}, {}]})
    assert [stage.engine.model for stage in run.generators.entries] == ["m", "b"]
    assert {stage.engine.max_len for stage in run.generators.entries} == {7}


def test_a_plain_setting_is_inherited_from_a_default_too() -> None:
    assert recipe().first.seed == 5
    assert recipe(first={"seed": 0}).first.seed == 0
    assert recipe(seed=2).second.seed is None


def test_an_optional_section_inherits_only_where_it_is_stated() -> None:
    assert recipe(engine={"max_len": 7}).optional is None
    stated = recipe(engine={"max_len": 7}, optional={}).optional
    assert stated is not None
    assert stated.engine.max_len == 7


def test_a_required_section_of_which_a_part_inherits_must_be_stated() -> None:
    class Outer(Settings):
        inherits: ClassVar = {"stage.engine": "engine"}

        engine: Engine = Engine()
        stage: Stage

    with pytest.raises(ValidationError, match="stage\n  Field required"):
        Outer.model_validate({"engine": {"max_len": 7}})
    assert Outer.model_validate({"engine": {"max_len": 7}, "stage": {}}).stage.engine.max_len == 7


def test_an_old_name_takes_precedence_over_what_is_inherited() -> None:
    with pytest.warns(FutureWarning, match="'length' is now 'max_len'"):
        run = recipe(engine={"max_len": 7}, first={"engine": {"length": 3}})
    assert run.first.engine.max_len == 3


def test_sections_given_as_objects_inherit_as_well() -> None:
    assert Recipe(base="b", engine=Engine(max_len=7), first=Stage(seed=1)).first.engine.max_len == 7


def test_stating_one_setting_keeps_the_other_defaults_of_the_place() -> None:
    assert recipe(fast={"model": "m"}).fast == Engine(model="m", max_len=99)


def test_the_resolved_configuration_reads_back_equal() -> None:
    run = recipe(engine={"max_len": 7}, generators={"entries": [{"seed": 1}]}, optional={})
    assert Recipe.model_validate(run.model_dump(mode="json")) == run
