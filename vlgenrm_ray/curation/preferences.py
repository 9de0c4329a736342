"""Reads CheckedResponse. Writes Preference.

A unit is an image with all checked responses to all its questions. Each question ends with pairs, or with a drop that
says why it has none.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from vlgenrm_ray.curation.balance import BalanceConfig, gap, is_even, skewing
from vlgenrm_ray.curation.case import Case, EvidenceConfig, Lost
from vlgenrm_ray.curation.contrasts import FLIPPED, imported, verified
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.rewriting import edited, repaired
from vlgenrm_ray.curation.witness import Witness
from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import CheckedResponse, Dropped, Origin, Preference
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "preferences"

_MAKERS: dict[Origin, Callable[[Case], Iterator[Preference | Lost]]] = {
    Origin.IMPORTED: imported,
    Origin.VERIFIED: verified,
    Origin.EDITED: edited,
    Origin.REPAIRED: repaired,
}


class PreferencesConfig(Settings):
    """Which pairs are made, and how many."""

    origins: tuple[Origin, ...] = Field(default=tuple(_MAKERS), min_length=1)
    """Ways of making pairs; a question gets the first of each in this order, then the second of each, ..."""
    max_per_question: int = Field(default=2, ge=1)
    max_per_kind: int = Field(default=2, ge=1)
    """Pairs of one question told apart by claims of one kind."""
    evidence: EvidenceConfig = EvidenceConfig()
    balance: BalanceConfig = BalanceConfig()
    seed: int | None = None
    """None: the run's."""

    @field_validator("origins")
    @classmethod
    def _known(cls, origins: tuple[Origin, ...]) -> tuple[Origin, ...]:
        if strange := [o.value for o in origins if o not in _MAKERS]:
            raise ValueError(f"'{strange[0]}' is no way of making pairs; choose from {', '.join(_MAKERS)}")
        return origins


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one question."""

    question: str
    """Its id."""
    pairs: tuple[Preference, ...]
    """Without ids yet."""
    lost: tuple[Lost, ...]


def contrast(case: Case, config: PreferencesConfig) -> Outcome:
    """One question's pairs, up to the limits, and those that fell by the way."""
    pairs: list[Preference] = []
    lost: list[Lost] = []
    kinds: Counter[str] = Counter()
    for pair in _in_turn([_MAKERS[origin](case) for origin in config.origins]):
        if isinstance(pair, Lost):
            lost.append(pair)
        elif any((p.chosen, p.rejected) == (pair.chosen, pair.rejected) for p in pairs):
            continue
        elif not is_even(pair.chosen, pair.rejected, config.balance):
            lost.append(
                Lost(
                    DropReason.LENGTH_UNBALANCED,
                    f"{pair.origin}: {len(pair.chosen)} against {len(pair.rejected)} characters",
                )
            )
        elif kinds[pair.kind] == config.max_per_kind:
            lost.append(
                Lost(DropReason.OVER_LIMIT, f"{pair.origin}: {config.max_per_kind} pairs of kind {pair.kind!r}")
            )
        else:
            kinds[pair.kind] += 1
            pairs.append(pair)
        if len(pairs) == config.max_per_question:
            break
    if not pairs and not lost:
        lost.append(_silent(case))
    return Outcome(case.responses[0].checked.response.question.id, tuple(pairs), tuple(lost))


def _in_turn(makers: Sequence[Iterator[Preference | Lost]]) -> Iterator[Preference | Lost]:
    """The first of each, then the second of each, and so on; made only when asked for."""
    waiting = list(makers)
    while waiting:
        for maker in list(waiting):
            made = next(maker, None)
            if made is None:
                waiting.remove(maker)
            else:
                yield made


def _silent(case: Case) -> Lost:
    """Why a question gave rise to no pair at all."""
    supported = sum(bool(j.standing.supported) for j in case.responses)
    contradicted = sum(bool(j.standing.contradicted) for j in case.responses)
    if not supported and not contradicted:
        return Lost(DropReason.NO_EVIDENCE, f"the experts decide no claim of its {len(case.responses)} responses")
    chosen = sum(map(case.can_be_chosen, case.responses))
    detail = f"of {len(case.responses)} responses {chosen} can be chosen, {contradicted} are contradicted"
    return Lost(DropReason.NO_CONTRAST, detail)


def prefer(
    unit: Unit[CheckedResponse], config: PreferencesConfig, vocabulary: Vocabulary, thresholds: Thresholds, seed: int
) -> Unit[Preference]:
    """One image's checked responses -> its pairs. Every question has a pair or a drop of its own id."""
    if not unit.records:
        drop = Dropped(stage=STAGE, id=unit.id, reason=DropReason.NO_EVIDENCE, detail="no response was checked")
        return Unit(id=unit.id, dropped=(drop,))
    by_question: dict[str, list[CheckedResponse]] = {}
    for checked in unit.records:
        by_question.setdefault(checked.response.question.id, []).append(checked)
    witness = Witness(unit.records, vocabulary, thresholds)
    outcomes = [
        contrast(Case.of(by_question[id], witness, config.evidence, config.balance, seed), config)
        for id in sorted(by_question)
    ]
    skewed = {id(p) for p in skewing([p for o in outcomes for p in o.pairs], config.balance)}
    records: list[Preference] = []
    dropped: list[Dropped] = []
    for outcome in outcomes:
        kept = [p for p in outcome.pairs if id(p) not in skewed]
        uneven = Lost(DropReason.LENGTH_UNBALANCED, "it skewed the lengths of its image's pairs")
        lost = [*outcome.lost, *[uneven] * (len(outcome.pairs) - len(kept))]
        records += [replace(p, id=f"{outcome.question}/p{i}") for i, p in enumerate(kept)]
        dropped += _drops(outcome.question, len(kept), lost)
    return Unit(id=unit.id, records=tuple(records), dropped=tuple(dropped))


def _drops(question: str, kept: int, lost: Sequence[Lost]) -> list[Dropped]:
    """A question with pairs drops the lost ones by numbers of their own; one without is dropped itself, once."""
    if kept:
        return [
            Dropped(stage=STAGE, id=f"{question}/p{kept + i}", reason=x.reason, detail=x.detail)
            for i, x in enumerate(lost)
        ]
    detail = "; ".join(x.detail for x in lost)
    return [Dropped(stage=STAGE, id=question, reason=lost[0].reason, detail=detail)]


def figures(folder: StageFolder) -> dict[str, Any]:
    """What the pairs are: by origin and kind, how often a label was turned round, how lengths compare."""
    origins: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    gaps: list[int] = []
    flipped = longer = 0
    for pair in folder.records(Preference):
        origins[pair.origin] += 1
        kinds[pair.kind or "unknown"] += 1
        flipped += pair.evidence.startswith(FLIPPED)
        gaps.append(gap(pair))
        longer += gaps[-1] > 0
    count = max(len(gaps), 1)
    return {
        "pairs_by_origin": dict(sorted(origins.items())),
        "pairs_by_kind": dict(sorted(kinds.items())),
        "flipped": flipped,
        "flip_rate": round(flipped / max(origins[Origin.IMPORTED], 1), 4),
        "mean_length_gap": round(sum(gaps) / count, 3),
        "mean_absolute_length_gap": round(sum(map(abs, gaps)) / count, 3),
        "chosen_longer_share": round(longer / count, 4),
    }


@dataclass(frozen=True)
class _Prefer:
    config: PreferencesConfig
    experts: ExpertsConfig
    seed: int

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        vocabulary = load_vocabulary(self.experts.vocabulary)
        units = units_from_table(CheckedResponse, rows)
        return units_table(
            Preference, [prefer(u, self.config, vocabulary, self.experts.thresholds, self.seed) for u in units]
        )


def run(
    config: PreferencesConfig, *, experts: ExpertsConfig, source: StageFolder, target: StageFolder, seed: int = 0
) -> Manifest:
    """Make pairs of the checked responses in `source`, reading claims as the experts did.

    `seed` is the run's, used if the configuration has none. See `flow.run` for what it raises.
    """
    seed = seed if config.seed is None else config.seed
    vocabulary = load_vocabulary(experts.vocabulary)
    manifest = flow.run(
        target,
        flow.read_units(source),
        lambda rows: rows.map_batches(_Prefer(config, experts, seed), **flow.LIGHT),
        total=source.complete().rows_in,
        fingerprint=digest([config.fingerprint(), vocabulary.fingerprint(), experts.thresholds.fingerprint(), seed]),
        inputs={"experts": source.data_hash()},
        metrics=figures,
    )
    if not manifest.rows_out:
        counts = ", ".join(f"{reason} {count}" for reason, count in manifest.dropped.items())
        raise StageError(
            f"preferences: no pair could be made of {source.path} ({counts}); sample more responses per question "
            "(responses.generators.n), or see in `dropped` what the experts lack"
        )
    return manifest
