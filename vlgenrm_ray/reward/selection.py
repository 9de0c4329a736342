"""Selection stage: reads Critique, writes Example, by margin-based rejection sampling.

A unit is a preference. A pair that yields no example gets a `Dropped` with its own id and the test that emptied it.
Every critique that is not trained on gets a `Dropped` with its id as well, so any example can be traced back to the
critiques that were rejected. The rules are in `rejection_sampling.py`, the checks of texts in `critique_checks.py`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Critique, Dropped, Example, Side
from vlgenrm_ray.reward.critique_checks import CritiqueChecker
from vlgenrm_ray.reward.examples import JudgeTemplates, build_examples
from vlgenrm_ray.reward.rejection_sampling import MarginScale, PairSelection, Strategy, margin, select_combinations
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

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
    prompt: str,
    direct_prompt: str,
    source: StageFolder,
    target: StageFolder,
    checker: CritiqueChecker | None = None,
) -> Manifest:
    """Run the stage on Ray Data. A finished `target` is returned unchanged, a partial one is continued.

    Args:
        config: Settings of the stage.
        prompt: Name or path of the judge's prompt for critiques.
        direct_prompt: Name or path of the judge's prompt for direct verdicts.
        source: Complete stage of critiques.
        target: Folder of this stage.
        checker: Checks the texts of critiques; None skips both checks.

    Returns:
        The stage's manifest, with `selection_metrics` as its metrics.

    Raises:
        InputError: A prompt cannot be read.
        ConfigError: `target` was made with other settings.
    """
    templates = JudgeTemplates(critique=prompts.load(prompt), direct=prompts.load(direct_prompt))
    select_batch = _SelectBatch(config, templates, checker)
    checks = checker.fingerprint() if checker else ""
    return flow.run(
        target,
        flow.read_units(source),
        lambda blocks: blocks.map_batches(select_batch, **flow.LIGHT),
        total=source.complete().rows_in,
        fingerprint=digest([config.model_dump(mode="json"), templates.critique, templates.direct, checks]),
        inputs={"critiques": source.data_hash()},
        metrics=lambda folder: selection_metrics(folder, source, scale=config.margin, min_mass=config.min_mass),
    )


@dataclass(frozen=True)
class _SelectBatch:
    """Ray Data operator: a table of units of Critique -> units of Example."""

    config: SelectionConfig
    templates: JudgeTemplates
    checker: CritiqueChecker | None

    def __call__(self, critiques: "pa.Table") -> "pa.Table":
        units = units_from_table(Critique, critiques)
        return units_table(Example, (select_examples(u, self.config, self.templates, self.checker) for u in units))


def select_examples(
    unit: Unit[Critique], config: SelectionConfig, templates: JudgeTemplates, checker: CritiqueChecker | None
) -> Unit[Example]:
    """Turn one pair's critiques into its training examples, and a `Dropped` for every critique that is not used."""
    if not unit.records:
        # The critiques stage dropped the pair; pass its reason on.
        drops = [
            Dropped(stage=STAGE, id=unit.id, reason=d.reason, detail=f"no critiques: {d.detail}") for d in unit.dropped
        ]
        return Unit(id=unit.id, dropped=tuple(drops[:1]))
    selection = select_critiques(unit.records, config, checker)
    drops = [Dropped(stage=STAGE, id=d.critique.id, reason=d.reason, detail=d.detail) for d in selection.dropped]
    if selection.failure is not None:
        detail = f"none of {len(unit.records)} critiques selected"
        drops.insert(0, Dropped(stage=STAGE, id=unit.id, reason=selection.failure, detail=detail))
    examples = build_examples(
        selection.selected,
        templates,
        w_direct=config.w_direct,
        lambda_answer=config.lambda_answer,
        extractor=checker.extractor if checker is not None else None,
    )
    return Unit(id=unit.id, records=tuple(examples), dropped=tuple(drops))


def select_critiques(
    critiques: tuple[Critique, ...], config: SelectionConfig, checker: CritiqueChecker | None
) -> PairSelection:
    """Check the texts of one pair's critiques (unless `checker` is None) and select among their combinations."""
    text_faults: dict[str, DropReason] = {}
    if checker is not None:
        # Most samples of a confident judge are the same text, and checking texts takes most of the time.
        texts = {(critique.side, critique.text): critique for critique in critiques}
        faults = {text: _text_fault(critique, config, checker) for text, critique in texts.items()}
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


def _text_fault(critique: Critique, config: SelectionConfig, checker: CritiqueChecker) -> DropReason | None:
    if config.check_claims and not checker.is_faithful(critique):
        return DropReason.UNFAITHFUL_CRITIQUE
    if config.check_evidence and checker.is_contradicted(critique):
        return DropReason.CONTRADICTED_CRITIQUE
    return None


def pair_failures(units: Iterable[Unit[Example]]) -> dict[str, DropReason]:
    """Map each pair (preference id) without examples to the reason, from the units of a finished selection."""
    return {d.id: DropReason(d.reason) for unit in units for d in unit.dropped if d.id == unit.id}


_CRITIQUE_COLUMNS = ("preference.kind", "side", "p_yes", "verdict_mass")
_SELECTION_COLUMNS = ("records.list.element.kind", "dropped.list.element.id", "dropped.list.element.reason")


def selection_metrics(
    selection: StageFolder, critiques: StageFolder, *, scale: MarginScale, min_mass: float
) -> dict[str, Any]:
    """Compute the metrics of a finished selection, as JSON. Reads only the columns it needs.

    `kept_share` is pairs with examples / pairs with critiques. `margin_histogram` counts every combination of two
    readable critiques, right or wrong, in 20 bins over [-1, 1]: how well the judge separates the sides before any
    selection.
    """
    kinds: dict[str, str] = {}
    histogram = np.zeros(NUM_BINS, dtype=np.int64)
    for row in _columns(critiques, ("id", *(f"records.list.element.{name}" for name in _CRITIQUE_COLUMNS))):
        if not row["records"]:
            continue
        kinds[row["id"]] = row["records"][0]["preference"]["kind"]
        margins = _margins(row["records"], scale, min_mass)
        histogram += np.histogram(margins, bins=NUM_BINS, range=(-1.0, 1.0))[0]
    selected_kinds: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    pairs_dropped: Counter[str] = Counter()
    critiques_dropped: Counter[str] = Counter()
    for row in _columns(selection, ("id", *_SELECTION_COLUMNS)):
        selected_kinds.update([kinds[row["id"]]] if row["records"] else [])
        examples.update(example["kind"] for example in row["records"])
        for dropped in row["dropped"]:
            (pairs_dropped if dropped["id"] == row["id"] else critiques_dropped)[dropped["reason"]] += 1
    return {
        "num_pairs": len(kinds),
        "num_pairs_kept": selected_kinds.total(),
        "kept_share": selected_kinds.total() / len(kinds) if kinds else 0.0,
        "by_kind": {
            kind: {"num_pairs": number, "num_pairs_kept": selected_kinds[kind]}
            for kind, number in sorted(Counter(kinds.values()).items())
        },
        "examples": dict(sorted(examples.items())),
        "pairs_dropped": dict(sorted(pairs_dropped.items())),
        "critiques_dropped": dict(sorted(critiques_dropped.items())),
        "margin_histogram": histogram.tolist(),
    }


def _columns(folder: StageFolder, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for shard in folder.shards():
        # `ParquetFile` picks columns inside nested records, `read_table` does not.
        with pq.ParquetFile(shard) as file:
            yield from file.read(columns=list(columns)).to_pylist()


def _margins(critiques: list[dict[str, Any]], scale: MarginScale, min_mass: float) -> npt.NDArray[np.float64]:
    p_yes: dict[str, list[float]] = {side.value: [] for side in Side}
    for critique in critiques:
        if critique["p_yes"] is not None and critique["verdict_mass"] >= min_mass:
            p_yes[critique["side"]].append(critique["p_yes"])
    return np.array([margin(a, b, scale) for a in p_yes[Side.CHOSEN] for b in p_yes[Side.REJECTED]])
