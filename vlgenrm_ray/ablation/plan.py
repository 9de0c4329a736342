"""Plan of an ablation: its cells, and the address of every stage of each cell and seed.

The address of a stage is its name with a hash of its settings and of the addresses of its inputs. Cells whose settings
agree up to some stage therefore have the same addresses up to there, and the work behind them is done once. Nothing
has to be declared as shared, and a recipe that gains cells or seeds continues with all that is finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from vlgenrm_ray import plugins, recipe
from vlgenrm_ray.ablation.config import REFERENCE, AblationConfig, LabelSource, VariantConfig, dump_base
from vlgenrm_ray.ablation.trainers import SUPERVISED, TRAINERS, JudgeTrainer
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.pipeline import critic
from vlgenrm_ray.settings import Settings, digest

_ADDRESS_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of variants, to be measured for every seed."""

    name: str
    """`reference`, or the variants that differ from the reference: `labels=self check=off`."""
    variants: Mapping[str, str]
    """Factor -> variant."""
    overrides: tuple[str, ...]
    """Settings of the base recipe to replace."""
    labels: LabelSource
    trainer: str
    rounds: int
    num_pairs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Addresses of the stages of one round. A discriminative judge has neither critiques nor a selection: ""."""

    round: int
    critiques: str
    """Critiques of the unlabelled pairs."""
    labels: str
    """Labelled pairs; those of the experts are the pairs themselves."""
    labelled_critiques: str
    """Critiques whose sides are those of the labels."""
    selection: str
    examples: str
    """Drawn examples; of a discriminative judge, drawn pairs."""
    training: str
    evaluation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell with one seed: its resolved configuration, and the addresses of its stages."""

    cell: Cell
    seed: int
    config: RunConfig
    """Complete configuration; `training` has the equal number of steps, `heldout` the test pairs."""
    evaluation_judge: JudgeConfig
    """Judge on the test pairs. Its sampling seed is that of the recipe, for all seeds."""
    num_examples: int
    pool: str
    responses: str
    experts: str
    preferences: str
    test_pool: str
    test: str
    base_evaluation: str
    """Evaluation of the base model, in the cell's way of judging. "" if the cell's judge writes no critiques."""
    rounds: tuple[RoundPlan, ...]

    @property
    def key(self) -> str:
        """Hash of everything that the result of the cell depends on, but its name."""
        stages = [self.base_evaluation, *(stage.evaluation for stage in self.rounds)]
        return digest([self.test, stages, [stage.labels for stage in self.rounds]])

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of all stages, in the order in which they run, each once."""
        before = (self.pool, self.responses, self.experts, self.preferences, self.test_pool, self.test)
        in_rounds = (
            address
            for stage in self.rounds
            for address in (
                stage.critiques,
                stage.labels,
                stage.labelled_critiques,
                stage.selection,
                stage.examples,
                stage.training,
                stage.evaluation,
            )
        )
        return tuple(dict.fromkeys(filter(None, (*before, self.base_evaluation, *in_rounds))))


def plan_cells(config: AblationConfig) -> tuple[Cell, ...]:
    """List the cells of an ablation, the reference first, in the order in which they are run."""
    reference = {factor: config.reference.get(factor, next(iter(of))) for factor, of in config.factors.items()}
    if config.cells == "product":
        combinations = [dict(zip(config.factors, names, strict=True)) for names in product(*config.factors.values())]
    elif config.cells == "around_reference":
        combinations = [reference | {factor: name} for factor, of in config.factors.items() for name in of]
    else:
        combinations = [reference | cell for cell in config.cells]
    distinct = {tuple(variants.items()): variants for variants in (reference, *combinations)}
    return tuple(_build_cell(config, variants, reference) for variants in distinct.values())


def _build_cell(config: AblationConfig, variants: Mapping[str, str], reference: Mapping[str, str]) -> Cell:
    chosen: list[VariantConfig] = [config.factors[factor][name] for factor, name in variants.items()]

    def stated(name: str, default: Any) -> Any:
        return next((value for variant in chosen if (value := getattr(variant, name)) is not None), default)

    differing = " ".join(f"{factor}={name}" for factor, name in variants.items() if name != reference[factor])
    return Cell(
        name=differing or REFERENCE,
        variants=dict(variants),
        overrides=(*config.overrides, *(text for variant in chosen for text in variant.overrides)),
        labels=stated("labels", "experts"),
        trainer=stated("trainer", SUPERVISED),
        rounds=stated("rounds", config.rounds),
        num_pairs=stated("num_pairs", None),
    )


def select_cells(cells: Sequence[Cell], patterns: Sequence[str]) -> tuple[Cell, ...]:
    """Return the cells whose name matches a pattern; all without patterns. Raises ConfigError if one matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            known = ", ".join(f"'{cell.name}'" for cell in cells)
            raise ConfigError(f"'{pattern}' matches no cell; the cells are {known}")
    return tuple(c for c in cells if not patterns or any(fnmatchcase(c.name, pattern) for pattern in patterns))


def load_trainer(name: str) -> JudgeTrainer:
    """Create the trainer that a cell names. Raises ConfigError if it cannot be imported."""
    trainer: JudgeTrainer = plugins.load(name, TRAINERS, "trainer")()
    return trainer


def plan_cell(config: AblationConfig, cell: Cell, seed: int) -> CellPlan:
    """Resolve the configuration of a cell with one seed, and compute the addresses of its stages.

    Raises:
        ConfigError: The settings of the cell are not valid.
    """
    values = dump_base(config) | {
        "heldout": config.test.model_dump(exclude_unset=True) | {"seed": config.test.seed or 0}
    }
    overrides = (
        *cell.overrides,
        f"seed={seed}",
        f"judge.seed={seed}",
        f"selection.seed={seed}",
        f"training.seed={seed}",
        # An epoch has at least one step, so `max_steps` is what ends the training, however few the examples are.
        f"training.epochs={config.num_steps}",
        f"training.max_steps={config.num_steps}",
        f"rounds.num_rounds={cell.rounds}",
    )
    try:
        run_config = recipe.build_with(RunConfig, values, overrides)
        base_config = recipe.build_with(RunConfig, values, (*cell.overrides, f"rounds.num_rounds={cell.rounds}"))
    except ConfigError as error:
        raise ConfigError(f"cell '{cell.name}': {error}") from None
    trainer = load_trainer(cell.trainer)
    if cell.rounds > 1 and not trainer.is_generative:
        raise ConfigError(
            f"cell '{cell.name}': trainer '{cell.trainer}' makes no judge that writes critiques, so there is no second "
            "round; set rounds: 1 in its variant"
        )
    run_config = run_config.model_copy(update={"judge": run_config.trained_judge})
    if run_config.judge.is_discriminative and cell.labels != "experts":
        raise ConfigError(
            f"cell '{cell.name}': a discriminative judge has no critiques, which labels: {cell.labels} needs; use "
            "labels: experts"
        )
    evaluation_judge = run_config.judge.model_copy(update={"seed": base_config.judge.seed})
    return _plan_stages(config, cell, seed, run_config, evaluation_judge, trainer)


def _plan_stages(
    ablation: AblationConfig,
    cell: Cell,
    seed: int,
    config: RunConfig,
    evaluation_judge: JudgeConfig,
    trainer: JudgeTrainer,
) -> CellPlan:
    experts_settings = config.experts.result_settings()
    pool = _address("pool", config.pool, config.seed)
    responses = _address("responses", config.responses, config.seed, pool)
    experts = _address("experts", config.experts, responses)
    preferences = _address("preferences", config.preferences, experts_settings, config.seed, experts)
    test_pool = _address("heldout-pool", config.heldout)
    test = _address("heldout", test_pool)
    other_settings = [] if cell.trainer == SUPERVISED else [cell.trainer, digest(config.result_settings())]

    def evaluation(model: str) -> str:
        return _address("evaluation", config.evaluation, _judge_parts(evaluation_judge), test, model, *other_settings)

    is_generative = trainer.is_generative and not config.judge.is_discriminative
    rounds: list[RoundPlan] = []
    model = config.base
    for number in range(1, cell.rounds + 1):
        if config.judge.is_discriminative:
            of_pairs = _plan_discriminative_round(ablation, cell, seed, config, preferences)
            rounds.append(replace(of_pairs, evaluation=evaluation(of_pairs.training)))
            break
        critiques = _address(
            "critiques", config.critiques, _judge_parts(critic(config, number)), number, preferences, model
        )
        labels, labelled_critiques = preferences, critiques
        if cell.labels != "experts":
            labels = _address("labels", cell.labels, ablation.truth if cell.labels == "truth" else "", critiques)
            labelled_critiques = _address("labelled-critiques", labels)
        selection = _address(
            "selection", config.selection, _judge_parts(config.judge), experts_settings, labels, labelled_critiques
        )
        examples = _address("examples", ablation.num_examples, cell.num_pairs, seed, selection)
        start = config.base if config.rounds.start_from == "base" else model
        inputs = [start, examples, number, *([labels, labelled_critiques] if other_settings else [])]
        model = _address("training", config.training, config.judge.kind, *inputs, *other_settings)
        rounds.append(
            RoundPlan(
                round=number,
                critiques=critiques,
                labels=labels,
                labelled_critiques=labelled_critiques,
                selection=selection,
                examples=examples,
                training=model,
                evaluation=evaluation(model),
            )
        )
    return CellPlan(
        cell=cell,
        seed=seed,
        config=config,
        evaluation_judge=evaluation_judge,
        num_examples=ablation.num_examples,
        pool=pool,
        responses=responses,
        experts=experts,
        preferences=preferences,
        test_pool=test_pool,
        test=test,
        base_evaluation=evaluation(config.base) if is_generative else "",
        rounds=tuple(rounds),
    )


def _plan_discriminative_round(
    ablation: AblationConfig, cell: Cell, seed: int, config: RunConfig, preferences: str
) -> RoundPlan:
    """Plan the only round of a discriminative judge, which learns from the pairs themselves."""
    pairs = _address("pairs", ablation.num_examples, cell.num_pairs, seed, preferences)
    return RoundPlan(
        round=1,
        critiques="",
        labels=preferences,
        labelled_critiques="",
        selection="",
        examples=pairs,
        training=_address("training", config.training, _judge_parts(config.judge), config.base, pairs),
        evaluation="",
    )


def _judge_parts(judge: JudgeConfig) -> list[Any]:
    """Return the settings of a judge with the texts of its prompts, which may be files of the user's."""
    return [judge.result_settings(), [prompts.load(name) for name in judge.prompt_names()]]


def _address(stage: str, *parts: Any) -> str:
    """Return the address of a stage: its name with a hash of its settings and the addresses of its inputs."""
    values = [part.result_settings() if isinstance(part, Settings) else part for part in parts]
    return f"{stage}-{digest(values)[:_ADDRESS_DIGITS]}"


def count_stages(plans: Sequence[CellPlan]) -> tuple[int, int]:
    """Count the stages of all cells and seeds: those that are run, and those that would be run without sharing."""
    addresses = [plan.addresses() for plan in plans]
    return len({address for of_plan in addresses for address in of_plan}), sum(map(len, addresses))
