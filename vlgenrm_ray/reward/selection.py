"""Selection stage: reads Critique and Preference, writes Example, by margin-based rejection sampling.

A unit is a preference. A pair that yields no example gets a `Dropped` with its own id and the reason.
Every critique that is not trained on gets a `Dropped` with its id as well, so any example can be traced back to the
critiques that were rejected. The rules are in `rejection_sampling.py`, the checks of texts in `critique_checks.py`.
For a judge of the mode `direct` there is no text to select: both verdicts of every pair are its examples.

Critiques hold only the id of their preference. The driver reads the preferences' ids into an index in Ray's object
store; each task looks up the preferences of its batch and reads the few shards that hold them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Critique, Dropped, Example, Preference, Side
from vlgenrm_ray.reward.examples import JudgeTemplates, build_examples, build_pair_examples
from vlgenrm_ray.reward.rejection_sampling import MarginScale, PairSelection, Strategy, margin, select_combinations
from vlgenrm_ray.rewards.critique_checks import CritiqueChecker
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

STAGE = "selection"
NUM_BINS = 20
"""Bins of the margin histogram over [-1, 1]."""


class SelectionConfig(Settings):
    """Settings of the selection: which critiques are trained on, and with what weight."""

    strategy: Strategy = Strategy.MRS
    """`mrs`, or one of its ablations `keep_all`, `correct_only`, `random_correct`, `reward_ranked`."""
    margin: MarginScale = MarginScale.PROBABILITY
    """Scale of the margin: `probability`, or `log_odds` (squashed to [-1, 1] as well)."""
    tau: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest margin of a combination (`mrs` only)."""
    top_n: int = Field(default=1, ge=1)
    """Largest number of combinations per pair (not used by `keep_all`, `correct_only`)."""
    check_claims: bool = False
    """Reject critiques that attribute to the response a claim it does not make, or whose verdict does not follow from
    their own steps. This makes critiques read better but does not make verdicts right more often, and it costs pairs
    while the judge still learns to read."""
    check_evidence: bool = True
    """Reject critiques whose own statements about the image are contradicted by the experts' detections."""
    w_direct: float = Field(default=0.5, ge=0.0)
    """Weight of the verdict without rationale; 0 makes no such examples."""
    lambda_answer: float = Field(default=0.1, ge=0.0)
    """Weight of the chosen response as an answer to the question; 0 makes no such examples."""
    min_mass: float = Field(default=0.0, ge=0.0, le=1.0)
    """Smallest p(Yes) + p(No) of a critique, where training should demand more than the judge does."""
    seed: int = Field(default=0, ge=0)
    """Seed of the strategies that choose at random."""


def run(
    config: SelectionConfig,
    *,
    judge: JudgeConfig,
    source: StageFolder,
    preferences: StageFolder,
    target: StageFolder,
    checker: CritiqueChecker | None = None,
) -> Manifest:
    """Run the stage on Ray Data. A finished `target` is returned unchanged, a partial one is continued.

    Args:
        config: Settings of the stage.
        judge: The judge to be trained, for its prompts and its mode. If it is pairwise and the critiques are those of a
            pointwise judge, each combination is composed into critiques of the pair.
        source: Complete stage of critiques.
        preferences: Complete stage of preferences that the critiques are about.
        target: Folder of this stage.
        checker: Checks the texts of critiques; None skips both checks.

    Returns:
        The stage's manifest, with `selection_metrics` as its metrics.

    Raises:
        InputError: A prompt cannot be read.
        ConfigError: `target` was made with other settings.
        StageError: A source is incomplete, or the critiques are about other preferences.
    """
    import ray

    if source.complete().inputs.get("preferences") != preferences.data_hash():
        raise StageError(
            f"selection: the critiques in {source.path} are not about the preferences in {preferences.path}; "
            "delete the critiques and run again"
        )
    templates = JudgeTemplates.load(judge)
    checks = checker.fingerprint() if checker else ""

    def select(blocks: "Dataset") -> "Dataset":
        index = ray.put(RecordIndex.build(preferences))
        return blocks.map_batches(_SelectBatch(config, templates, checker, index, judge.mode), **flow.LIGHT)

    return flow.run(
        target,
        flow.read_units(source),
        select,
        total=source.complete().rows_in,
        block_rows=flow.light_block_rows(source.complete().rows_in),
        fingerprint=fingerprint(config, templates, checks, judge),
        inputs={"critiques": source.data_hash(), "preferences": preferences.data_hash()},
        metrics=lambda _folder, sums: selection_metrics(sums),
    )


def fingerprint(config: SelectionConfig, templates: JudgeTemplates, checks: str, judge: JudgeConfig) -> str:
    """Hash of everything that decides the examples. `checks`: fingerprint of the checker."""
    parts = [config.result_settings(), asdict(templates), checks]
    return digest(parts if judge.mode == "cot" else [*parts, judge.mode])


@dataclass(frozen=True)
class _SelectBatch:
    """Ray Data operator: a table of units of Critique -> units of Example."""

    config: SelectionConfig
    templates: JudgeTemplates
    checker: CritiqueChecker | None
    index: Any
    """Ray reference to the `RecordIndex` of the preferences."""
    mode: Literal["cot", "direct"]

    def __call__(self, critiques: "pa.Table") -> "pa.Table":
        import ray

        index: RecordIndex = ray.get(self.index)
        units = units_from_table(Critique, critiques)
        preferences = index.read(Preference, [unit.id for unit in units])
        return units_table(Example, [self._select(unit, preferences[unit.id]) for unit in units])

    def _select(self, critiques: Unit[Critique], preference: Preference) -> Unit[Example]:
        unit = select_examples(critiques, preference, self.config, self.templates, self.checker, self.mode)
        scale, min_mass = self.config.margin, self.config.min_mass
        sums = count_selection(unit, critiques.records, preference.kind, scale=scale, min_mass=min_mass)
        return replace(unit, metric_sums=sums)


def select_examples(
    unit: Unit[Critique],
    preference: Preference,
    config: SelectionConfig,
    templates: JudgeTemplates,
    checker: CritiqueChecker | None,
    mode: Literal["cot", "direct"] = "cot",
) -> Unit[Example]:
    """Turn one pair's critiques into its training examples, and a `Dropped` for every critique that is not used."""
    if not unit.records:
        # The critiques stage dropped the pair; pass its reason on.
        drops = [
            Dropped(stage=STAGE, id=unit.id, reason=d.reason, detail=f"no critiques: {d.detail}") for d in unit.dropped
        ]
        return Unit(id=unit.id, dropped=tuple(drops[:1]))
    extractor = checker.extractor if checker is not None else None
    if mode == "direct":
        verdicts = build_pair_examples(
            preference,
            templates,
            w_direct=1.0,
            lambda_answer=config.lambda_answer,
            round=unit.records[0].round,
            extractor=extractor,
        )
        return Unit(id=unit.id, records=tuple(verdicts))
    selection = select_critiques(unit.records, preference, config, checker)
    drops = [Dropped(stage=STAGE, id=d.critique.id, reason=d.reason, detail=d.detail) for d in selection.dropped]
    if selection.failure is not None:
        detail = f"none of {len(unit.records)} critiques selected"
        drops.insert(0, Dropped(stage=STAGE, id=unit.id, reason=selection.failure, detail=detail))
    examples = build_examples(
        selection.selected,
        preference,
        templates,
        w_direct=config.w_direct,
        lambda_answer=config.lambda_answer,
        extractor=extractor,
    )
    return Unit(id=unit.id, records=tuple(examples), dropped=tuple(drops))


def select_critiques(
    critiques: tuple[Critique, ...], preference: Preference, config: SelectionConfig, checker: CritiqueChecker | None
) -> PairSelection:
    """Check the texts of one pair's critiques (unless `checker` is None) and select among their combinations."""
    text_faults: dict[str, DropReason] = {}
    if checker is not None:
        # Most samples of a confident judge are the same text, and checking texts takes most of the time.
        texts = {(critique.side, critique.text): critique for critique in critiques}
        faults = {text: _text_fault(critique, preference, config, checker) for text, critique in texts.items()}
        text_faults = {c.id: fault for c in critiques if (fault := faults[c.side, c.text]) is not None}
    return select_combinations(
        critiques,
        text_faults,
        strategy=config.strategy,
        scale=config.margin,
        tau=config.tau,
        top_n=config.top_n,
        min_mass=config.min_mass,
        seed=config.seed,
    )


def _text_fault(
    critique: Critique, preference: Preference, config: SelectionConfig, checker: CritiqueChecker
) -> DropReason | None:
    if config.check_claims and not checker.is_faithful(critique, preference):
        return DropReason.UNFAITHFUL_CRITIQUE
    if config.check_evidence and checker.is_contradicted(critique, preference):
        return DropReason.CONTRADICTED_CRITIQUE
    return None


def pair_failures(units: Iterable[Unit[Example]]) -> dict[str, DropReason]:
    """Map each pair (preference id) without examples to the reason, from the units of a finished selection."""
    return {d.id: DropReason(d.reason) for unit in units for d in unit.dropped if d.id == unit.id}


def count_selection(
    unit: Unit[Example], critiques: Sequence[Critique], kind: str, *, scale: MarginScale, min_mass: float
) -> dict[str, Any]:
    """Count the examples and drops of a pair, and the margins of its critiques.

    Args:
        unit: The pair with its examples.
        critiques: All critiques of the pair.
        kind: Kind of the pair.
        scale: Scale of the margins.
        min_mass: Smallest p(Yes) + p(No) of a critique that counts.
    """
    margins = _margins(((c.side, c.p_yes, c.verdict_mass) for c in critiques), scale, min_mass)
    bins = np.histogram(margins, bins=NUM_BINS, range=(-1.0, 1.0))[0].tolist()
    return {
        "pairs": {kind: int(bool(critiques))},
        "pairs_kept": {kind: int(bool(unit.records))},
        "examples": Counter(example.kind.value for example in unit.records),
        "pairs_dropped": Counter(drop.reason for drop in unit.dropped if drop.id == unit.id),
        "critiques_dropped": Counter(drop.reason for drop in unit.dropped if drop.id != unit.id),
        "margins": {str(index): count for index, count in enumerate(bins) if count},
    }


def selection_metrics(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the metrics of a finished selection, as JSON.

    `kept_share` is pairs with examples / pairs with critiques. `margin_histogram` counts every combination of two
    readable critiques, right or wrong, in 20 bins over [-1, 1]: how well the judge separates the sides before any
    selection.

    Args:
        sums: Sum of `count_selection` over the units of the stage.
    """
    pairs, pairs_kept = sums.get("pairs", {}), sums.get("pairs_kept", {})
    num_pairs, num_pairs_kept = sum(pairs.values()), sum(pairs_kept.values())
    margins = sums.get("margins", {})
    return {
        "num_pairs": num_pairs,
        "num_pairs_kept": num_pairs_kept,
        "kept_share": num_pairs_kept / num_pairs if num_pairs else 0.0,
        "by_kind": {
            kind: {"num_pairs": number, "num_pairs_kept": pairs_kept[kind]}
            for kind, number in sorted(pairs.items())
            if number
        },
        "examples": dict(sorted(sums.get("examples", {}).items())),
        "pairs_dropped": dict(sorted(sums.get("pairs_dropped", {}).items())),
        "critiques_dropped": dict(sorted(sums.get("critiques_dropped", {}).items())),
        "margin_histogram": [margins.get(str(index), 0) for index in range(NUM_BINS)],
    }


def _margins(
    critiques: Iterable[tuple[str, float | None, float]], scale: MarginScale, min_mass: float
) -> npt.NDArray[np.float64]:
    """Compute the margins of all combinations, from side, p_yes and verdict mass of each critique."""
    p_yes_of: dict[str, list[float]] = {side.value: [] for side in Side}
    for side, p_yes, mass in critiques:
        if p_yes is not None and mass >= min_mass:
            p_yes_of[side].append(p_yes)
    return np.array([margin(a, b, scale) for a in p_yes_of[Side.CHOSEN] for b in p_yes_of[Side.REJECTED]])
