"""Reads Critique. Writes Example. A unit is a preference: margin-based rejection sampling over its K x K critiques.

A pair that yields nothing is `Dropped` under its own id, with the test that emptied it. Every critique that is not
trained on is `Dropped` under its id too, so that from any example a person can walk back to all that lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Critique, Dropped, Example
from vlgenrm_ray.reward.combinations import MarginScale, Selection, Strategy, select
from vlgenrm_ray.reward.examples import Templates, examples
from vlgenrm_ray.reward.faithfulness import is_faithful
from vlgenrm_ray.reward.refutation import Evidence
from vlgenrm_ray.reward.selection_metrics import measure
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "selection"


class SelectionConfig(Settings):
    """Which critiques are trained on, and with what weight."""

    strategy: Strategy = Strategy.MRS
    """`mrs`, or one of its ablations `keep_all`, `correct_only`, `random_correct`, `reward_ranked`."""
    margin: MarginScale = MarginScale.PROBABILITY
    """Scale of the margin: `probability`, or `log_odds` (squashed to [-1, 1] as well)."""
    tau: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least margin of a combination (`mrs` only)."""
    top_n: int = Field(default=1, ge=1)
    """Combinations kept per pair at most (not `keep_all`, `correct_only`)."""
    check_claims: bool = False
    """Leave out critiques that put claims into the response's mouth, or whose verdict does not follow from its own.

    It makes critiques read better, not verdicts right more often, and costs pairs while the judge still learns to read.
    """
    check_evidence: bool = True
    """Leave out critiques whose own statements about the image the experts' detections contradict."""
    w_direct: float = Field(default=0.5, ge=0.0)
    """Weight of the verdict without rationale; 0 makes no such examples."""
    lambda_answer: float = Field(default=0.1, ge=0.0)
    """Weight of the chosen response as an answer to the question; 0 makes no such examples."""
    min_mass: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least p(Yes) + p(No) of a critique to learn from, where it is to be more than the judge asks for."""
    seed: int = Field(default=0, ge=0)
    """Decides what is kept where chance does."""


def choose(critiques: tuple[Critique, ...], config: SelectionConfig, evidence: Evidence | None) -> Selection:
    """What becomes of the critiques of one pair; without `evidence` nobody reads what they say."""
    misread: dict[str, DropReason] = {}
    if evidence is not None:
        # Most samples of a sure judge are one and the same text, and texts are what takes time to check.
        texts = {(critique.side, critique.text): critique for critique in critiques}
        faults = {text: _fault(critique, config, evidence) for text, critique in texts.items()}
        misread = {c.id: fault for c in critiques if (fault := faults[c.side, c.text]) is not None}
    return select(
        critiques,
        misread,
        strategy=config.strategy,
        scale=config.margin,
        tau=config.tau,
        top_n=config.top_n,
        min_mass=config.min_mass,
        seed=config.seed,
    )


def _fault(critique: Critique, config: SelectionConfig, evidence: Evidence) -> DropReason | None:
    if config.check_claims and not is_faithful(critique, evidence.extractor):
        return DropReason.UNFAITHFUL_CRITIQUE
    if config.check_evidence and evidence.refutes(critique):
        return DropReason.CONTRADICTED_CRITIQUE
    return None


def examples_of(
    unit: Unit[Critique], config: SelectionConfig, templates: Templates, evidence: Evidence | None
) -> Unit[Example]:
    """One pair's critiques -> its training examples, or why there are none; each critique has one or the other."""
    if not unit.records:
        # The pair got no critiques at all; the reason is the earlier stage's.
        lost = [
            Dropped(stage=STAGE, id=unit.id, reason=d.reason, detail=f"no critiques: {d.detail}") for d in unit.dropped
        ]
        return Unit(id=unit.id, dropped=tuple(lost[:1]))
    selection = choose(unit.records, config, evidence)
    dropped = [
        Dropped(stage=STAGE, id=lost.critique.id, reason=lost.reason, detail=lost.detail) for lost in selection.lost
    ]
    if selection.failure is not None:
        detail = f"nothing kept of {len(unit.records)} critiques"
        dropped.insert(0, Dropped(stage=STAGE, id=unit.id, reason=selection.failure, detail=detail))
    made = examples(
        selection.kept,
        templates,
        w_direct=config.w_direct,
        lambda_answer=config.lambda_answer,
        extractor=evidence.extractor if evidence is not None else None,
    )
    return Unit(id=unit.id, records=tuple(made), dropped=tuple(dropped))


def failures(units: Iterable[Unit[Example]]) -> dict[str, DropReason]:
    """Preference id -> why its pair yielded nothing, of a finished selection's units."""
    return {d.id: DropReason(d.reason) for unit in units for d in unit.dropped if d.id == unit.id}


@dataclass(frozen=True)
class _Select:
    config: SelectionConfig
    templates: Templates
    evidence: Evidence | None

    def __call__(self, critiques: "pa.Table") -> "pa.Table":
        units = units_from_table(Critique, critiques)
        return units_table(Example, (examples_of(u, self.config, self.templates, self.evidence) for u in units))


def run(
    config: SelectionConfig,
    *,
    prompt: str,
    direct_prompt: str,
    source: StageFolder,
    target: StageFolder,
    evidence: Evidence | None = None,
) -> Manifest:
    """Select among the critiques in `source`.

    `prompt` and `direct_prompt` are the judge's own: what is trained is what is later asked. `evidence` is how
    statements are read and checked.
    Raises InputError for a prompt that cannot be read, ConfigError if `target` was made with other settings.
    """
    templates = Templates(critique=prompts.load(prompt), direct=prompts.load(direct_prompt))
    work = _Select(config, templates, evidence)
    checks = evidence.fingerprint() if evidence else ""
    return flow.run(
        target,
        flow.read_units(source),
        lambda blocks: blocks.map_batches(work, **flow.LIGHT),
        total=source.complete().rows_in,
        fingerprint=digest([config.model_dump(mode="json"), templates.critique, templates.direct, checks]),
        inputs={"critiques": source.data_hash()},
        metrics=lambda folder: measure(folder, source, scale=config.margin, min_mass=config.min_mass),
    )
