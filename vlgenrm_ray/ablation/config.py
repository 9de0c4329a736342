"""Recipe of an ablation: a base recipe, factors with named variants, the cells to compare, seeds and test pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from vlgenrm_ray import plugins, recipe
from vlgenrm_ray.ablation.trainers import TRAINERS
from vlgenrm_ray.curation.pool import HeldoutConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.settings import Settings


def _check_override(text: str) -> str:
    if not text.partition("=")[0] or "=" not in text:
        raise ValueError("this is no override; write a.b=value")
    return text


Override = Annotated[str, AfterValidator(_check_override)]
LabelSource = Literal["experts", "self", "truth"]
"""Source of the labels of pairs; see `labels.py`."""
REFERENCE = "reference"
"""Name of the reference cell."""


class VariantConfig(Settings):
    """One variant of a factor: the settings in which its cells differ from others."""

    overrides: tuple[Override, ...] = ()
    """Settings of the base recipe to replace, as `a.b=value`."""
    labels: LabelSource | None = None
    """Source of the pairs' labels: the `experts` (default), the judge of each round by its own critiques (`self`), or
    the ground truth (`truth`), which needs the setting `truth` of the recipe."""
    trainer: str | None = None
    """Way to train the judge: `supervised` (default), or an import path `package.module:Name`; see
    `ablation/trainers.py`."""
    rounds: int | None = Field(default=None, ge=1, le=20)
    """Rounds of the method; default: those of the recipe."""
    num_pairs: int | None = Field(default=None, ge=1)
    """Largest number of labelled pairs that examples may come from; default: no limit."""

    @field_validator("trainer")
    @classmethod
    def _is_known_trainer(cls, trainer: str | None) -> str | None:
        return trainer if trainer is None else plugins.check_name(trainer, TRAINERS)

    def keys(self) -> set[str]:
        """Return the names of the settings that the variant states."""
        own = {name for name in ("labels", "trainer", "rounds", "num_pairs") if getattr(self, name) is not None}
        return own | {text.partition("=")[0] for text in self.overrides}


class DiagnosisConfig(Settings):
    """Measurements that explain the numbers, for some cells and the base model, with the first seed."""

    cells: tuple[str, ...] = (REFERENCE,)
    """Names of the cells, or patterns such as `labels=*`."""
    max_critiques: int = Field(default=0, ge=0, le=256)
    """Critiques K of each response that are stored for the curve of accuracy over K; 0 draws no curve."""
    num_swapped: int = Field(default=0, ge=0)
    """Test pairs that are also judged with the image of another pair; 0 judges none."""


class AblationConfig(Settings):
    """Recipe of an ablation: cells of named variants, on the same test pairs at equal examples and steps."""

    recipe: str | dict[str, Any]
    """Recipe of a reward-model run: a path, relative to this file, or its sections."""
    overrides: tuple[Override, ...] = ()
    """Settings of the base recipe to replace in every cell, as `a.b=value`."""
    factors: dict[str, dict[str, VariantConfig]] = Field(min_length=1)
    """Name of a factor -> name of a variant -> its settings. Factors of one cell state different settings."""
    reference: dict[str, str] = Field(default_factory=dict)
    """Factor -> variant of the cell that the others are compared with; a factor left out has its first variant."""
    cells: Literal["around_reference", "product"] | tuple[dict[str, str], ...] = "around_reference"
    """Cells after the reference: all that differ from it in one factor, all combinations, or a list in which each
    entry names the variants that differ from the reference."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds. Each draws its own data, responses, critiques, selection and order of examples; test pairs are the same.
    All cells of the first seed are run before those of the second."""
    test: HeldoutConfig
    """Labelled pairs that every judge is measured on. They replace the section `heldout` of the base recipe."""
    rounds: int = Field(default=1, ge=1, le=20)
    """Rounds of the method, unless a variant states its own number."""
    num_examples: int = Field(ge=2)
    """Examples that every cell trains on in a round: a random part of those that its selection yields. A cell whose
    selection yields fewer trains on these, and the result says so."""
    num_steps: int = Field(ge=1)
    """Optimizer steps of a round, the same for every cell."""
    truth: str = ""
    """Function `module:name` of (Question, response) that returns the truth of a response, or None if unknown. It
    measures the labels, and makes those of variants with `labels: truth`. Empty: the truth is not known."""
    diagnosis: DiagnosisConfig = DiagnosisConfig()
    """Measurements that explain the numbers."""

    @field_validator("seeds")
    @classmethod
    def _are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice; list each once")
        return seeds

    @field_validator("factors")
    @classmethod
    def _have_variants(cls, factors: dict[str, dict[str, VariantConfig]]) -> dict[str, dict[str, VariantConfig]]:
        if empty := [name for name, variants in factors.items() if not variants]:
            raise ValueError(f"factor '{empty[0]}' has no variant; name at least one")
        return factors

    @model_validator(mode="after")
    def _name_known_variants(self) -> Self:
        for place, variants in self._named_variants():
            for factor, name in variants.items():
                if factor not in self.factors:
                    raise ValueError(f"{place}: '{factor}' is no factor; choose from {', '.join(self.factors)}")
                if name not in self.factors[factor]:
                    known = ", ".join(self.factors[factor])
                    raise ValueError(f"{place}: '{name}' is no variant of '{factor}'; choose from {known}")
        return self

    def _named_variants(self) -> list[tuple[str, Mapping[str, str]]]:
        listed = [] if isinstance(self.cells, str) else list(self.cells)
        return [("reference", self.reference), *((f"cells.{i}", cell) for i, cell in enumerate(listed))]

    @model_validator(mode="after")
    def _factors_state_different_settings(self) -> Self:
        factor_of: dict[str, str] = {}
        for factor, variants in self.factors.items():
            for key in sorted(set().union(*(variant.keys() for variant in variants.values()))):
                if (other := factor_of.setdefault(key, factor)) != factor:
                    raise ValueError(
                        f"factors '{other}' and '{factor}' both state '{key}'; a cell would have two values of it: "
                        "make them one factor"
                    )
        return self

    @model_validator(mode="after")
    def _know_the_truth_if_needed(self) -> Self:
        variants = [variant for of_factor in self.factors.values() for variant in of_factor.values()]
        if not self.truth and any(variant.labels == "truth" for variant in variants):
            raise ValueError("a variant has labels: truth; name the function in truth, as module:name")
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """Read the recipe of an ablation, with its base recipe in it.

    Args:
        path: YAML file.
        overrides: Settings that replace the file's, as `a.b=value`; those of the base recipe as `recipe.a.b=value`.

    Raises:
        ConfigError: A file cannot be read, or settings are not valid; one line per mistake.
    """
    values = recipe.read(path)
    if isinstance(base := values.get("recipe"), str):
        values["recipe"] = recipe.read(path.parent / base)
    return recipe.build_with(AblationConfig, values, overrides)


def dump_base(config: AblationConfig) -> dict[str, Any]:
    """Return the sections of the base recipe. Raises ConfigError if it was not read by `load`."""
    if isinstance(config.recipe, str):
        raise ConfigError(f"recipe: {config.recipe!r} was not read; load the recipe from a file, or give its sections")
    return dict(config.recipe)
