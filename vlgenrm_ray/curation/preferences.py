"""The preferences stage: builds preference pairs from checked responses. Reads CheckedResponse, writes Preference.

A unit is an image with all checked responses to all its questions. Every question ends with pairs, or with a drop that
says why it has none. `pair_builders` has the ways of making pairs, `evidence` the requirements on them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from vlgenrm_ray.curation.evidence import EvidenceConfig, EvidenceIndex, QuestionEvidence, RejectedPair
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.hard_negatives import Cooccurrence, count_cooccurrence
from vlgenrm_ray.curation.pair_builders import (
    FLIPPED,
    BalanceConfig,
    edited_pairs,
    has_similar_length,
    imported_pairs,
    repaired_pairs,
    verified_pairs,
)
from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.claims import grammar_fingerprint
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import CheckedResponse, Dropped, Origin, Preference
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "preferences"

PairBuilder = Callable[[QuestionEvidence, BalanceConfig], Iterator[Preference | RejectedPair]]

_BUILDERS: dict[Origin, PairBuilder] = {
    Origin.IMPORTED: imported_pairs,
    Origin.VERIFIED: verified_pairs,
    Origin.EDITED: edited_pairs,
    Origin.REPAIRED: repaired_pairs,
}


class PreferencesConfig(Settings):
    """The kinds of pairs that are built, and how many."""

    origins: tuple[Origin, ...] = Field(default=tuple(_BUILDERS), min_length=1)
    """Ways of making pairs. A question gets the first pair of each in this order, then the second of each, ..."""
    max_per_question: int = Field(default=2, ge=1)
    """Most pairs per question."""
    max_per_kind: int = Field(default=2, ge=1)
    """Most pairs per question that are told apart by claims of one kind."""
    hard_negatives: bool = True
    """Prefer wrong objects that the detectors find together with those of the image in other images, for `edited`.
    False: all absent objects are equally likely."""
    evidence: EvidenceConfig = EvidenceConfig()
    """Evidence that a pair requires."""
    balance: BalanceConfig = BalanceConfig()
    """Limits on the difference in length between the two sides."""
    seed: int | None = None
    """None: the seed of the run."""

    @field_validator("origins")
    @classmethod
    def _are_known(cls, origins: tuple[Origin, ...]) -> tuple[Origin, ...]:
        if unknown := [o.value for o in origins if o not in _BUILDERS]:
            raise ValueError(f"'{unknown[0]}' is not a way of making pairs; choose from {', '.join(_BUILDERS)}")
        return origins


@dataclass(frozen=True, slots=True)
class QuestionPairs:
    """The pairs of one question."""

    question_id: str
    pairs: tuple[Preference, ...]
    """Pairs that are not numbered yet: they have no ids."""
    rejected: tuple[RejectedPair, ...]


def build_question_pairs(question: QuestionEvidence, config: PreferencesConfig) -> QuestionPairs:
    """Build the pairs of one question, up to the limits of the configuration."""
    pairs: list[Preference] = []
    rejected: list[RejectedPair] = []
    kinds: Counter[str] = Counter()
    for pair in _round_robin([_BUILDERS[origin](question, config.balance) for origin in config.origins]):
        if isinstance(pair, RejectedPair):
            rejected.append(pair)
        elif any((p.chosen, p.rejected) == (pair.chosen, pair.rejected) for p in pairs):
            continue
        elif not has_similar_length(pair.chosen, pair.rejected, config.balance):
            detail = f"{pair.origin}: {len(pair.chosen)} against {len(pair.rejected)} characters"
            rejected.append(RejectedPair(DropReason.LENGTH_UNBALANCED, detail))
        elif kinds[pair.kind] == config.max_per_kind:
            detail = f"{pair.origin}: {config.max_per_kind} pairs of kind {pair.kind!r}"
            rejected.append(RejectedPair(DropReason.OVER_LIMIT, detail))
        else:
            kinds[pair.kind] += 1
            pairs.append(pair)
        if len(pairs) == config.max_per_question:
            break
    if not pairs and not rejected:
        rejected.append(_explain_no_pair(question))
    return QuestionPairs(question.question_id, tuple(pairs), tuple(rejected))


def _round_robin(builders: Sequence[Iterator[Preference | RejectedPair]]) -> Iterator[Preference | RejectedPair]:
    """Yield the first item of each iterator, then the second of each, and so on. Lazy."""
    remaining = list(builders)
    while remaining:
        for builder in list(remaining):
            pair = next(builder, None)
            if pair is None:
                remaining.remove(builder)
            else:
                yield pair


def _explain_no_pair(question: QuestionEvidence) -> RejectedPair:
    responses = question.responses
    num_supported = sum(bool(r.summary.supported) for r in responses)
    num_contradicted = sum(bool(r.summary.contradicted) for r in responses)
    if not num_supported and not num_contradicted:
        detail = f"the experts decide no claim of its {len(responses)} responses"
        return RejectedPair(DropReason.NO_EVIDENCE, detail)
    num_chosen = sum(map(question.can_be_chosen, responses))
    detail = f"of {len(responses)} responses {num_chosen} can be chosen, {num_contradicted} are contradicted"
    return RejectedPair(DropReason.NO_CONTRAST, detail)


def length_gap(pair: Preference) -> int:
    """Return the length of the chosen side minus the rejected side, in characters."""
    return len(pair.chosen) - len(pair.rejected)


def select_skewing(pairs: Sequence[Preference], config: BalanceConfig) -> list[Preference]:
    """Select the pairs of an image to drop so that the rest has balanced lengths on average.

    The pair with the largest contribution to the imbalance is dropped first. At least one pair always remains.
    """
    remaining, skewing = list(pairs), []
    while len(remaining) > 1:
        total_gap = sum(map(length_gap, remaining))
        mean_length = sum(len(p.chosen) + len(p.rejected) for p in remaining) / (2 * len(remaining))
        mean_gap = total_gap / len(remaining)
        if abs(mean_gap) <= max(config.max_mean_gap * mean_length, config.free_gap):
            break
        worst = max(remaining, key=lambda p: length_gap(p) if total_gap > 0 else -length_gap(p))
        remaining.remove(worst)
        skewing.append(worst)
    return skewing


def build_image_pairs(
    unit: Unit[CheckedResponse],
    config: PreferencesConfig,
    vocabulary: Vocabulary,
    thresholds: Thresholds,
    seed: int,
    cooccurrence: Cooccurrence | None = None,
) -> Unit[Preference]:
    """Build the pairs of one image.

    Args:
        unit: Checked responses to all questions about the image.
        config: Limits and requirements.
        vocabulary: Vocabulary that the experts stage read claims with.
        thresholds: Thresholds of the experts stage.
        seed: Seed of random choices.
        cooccurrence: Nouns that are detected together, for hard negatives.

    Returns:
        The pairs. Every question has a pair or a drop with the question's id.
    """
    if not unit.records:
        drop = Dropped(stage=STAGE, id=unit.id, reason=DropReason.NO_EVIDENCE, detail="no response was checked")
        return Unit(id=unit.id, dropped=(drop,))
    by_question: dict[str, list[CheckedResponse]] = {}
    for checked in unit.records:
        by_question.setdefault(checked.response.question.id, []).append(checked)
    index = EvidenceIndex(unit.records, vocabulary, thresholds, cooccurrence)
    questions = [
        build_question_pairs(
            QuestionEvidence.from_responses(by_question[question_id], index, config.evidence, seed), config
        )
        for question_id in sorted(by_question)
    ]
    skewing = {id(p) for p in select_skewing([p for q in questions for p in q.pairs], config.balance)}
    records: list[Preference] = []
    dropped: list[Dropped] = []
    for question in questions:
        pairs = [p for p in question.pairs if id(p) not in skewing]
        skewed = RejectedPair(DropReason.LENGTH_UNBALANCED, "it skewed the lengths of its image's pairs")
        rejected = [*question.rejected, *[skewed] * (len(question.pairs) - len(pairs))]
        records += [replace(p, id=f"{question.question_id}/p{i}") for i, p in enumerate(pairs)]
        dropped += _make_drops(question.question_id, len(pairs), rejected)
    return Unit(id=unit.id, records=tuple(records), dropped=tuple(dropped), metric_sums=count_pairs(records))


def _make_drops(question_id: str, num_pairs: int, rejected: Sequence[RejectedPair]) -> list[Dropped]:
    """Drop each rejected pair under the next pair number; drop a question without pairs once, under its own id."""
    if num_pairs:
        return [
            Dropped(stage=STAGE, id=f"{question_id}/p{num_pairs + i}", reason=r.reason, detail=r.detail)
            for i, r in enumerate(rejected)
        ]
    detail = "; ".join(r.detail for r in rejected)
    return [Dropped(stage=STAGE, id=question_id, reason=rejected[0].reason, detail=detail)]


def count_pairs(pairs: Sequence[Preference]) -> dict[str, Any]:
    """Count the pairs of a unit by origin and kind, the flipped labels, and sum up the differences in length."""
    gaps = [length_gap(pair) for pair in pairs]
    return {
        "origins": Counter(pair.origin.value for pair in pairs),
        "kinds": Counter(pair.kind or "unknown" for pair in pairs),
        "flipped": sum(pair.evidence.startswith(FLIPPED) for pair in pairs),
        "gap": sum(gaps),
        "absolute_gap": sum(map(abs, gaps)),
        "chosen_longer": sum(gap > 0 for gap in gaps),
    }


def measure_pairs(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the metrics of the stage from the sum of `count_pairs` over its units."""
    origins: Mapping[str, int] = sums.get("origins", {})
    count = max(sum(origins.values()), 1)
    return {
        "pairs_by_origin": dict(sorted(origins.items())),
        "pairs_by_kind": dict(sorted(sums.get("kinds", {}).items())),
        "flipped": sums.get("flipped", 0),
        "flip_rate": round(sums.get("flipped", 0) / max(origins.get(Origin.IMPORTED, 0), 1), 4),
        "mean_length_gap": round(sums.get("gap", 0) / count, 3),
        "mean_absolute_length_gap": round(sums.get("absolute_gap", 0) / count, 3),
        "chosen_longer_share": round(sums.get("chosen_longer", 0) / count, 4),
    }


@dataclass(frozen=True)
class _BuildPairs:
    config: PreferencesConfig
    experts: ExpertsConfig
    seed: int
    cooccurrence: Cooccurrence | None

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        vocabulary = load_vocabulary(self.experts.vocabulary)
        thresholds = self.experts.fitted_thresholds()
        units = units_from_table(CheckedResponse, rows)
        return units_table(
            Preference,
            [build_image_pairs(u, self.config, vocabulary, thresholds, self.seed, self.cooccurrence) for u in units],
        )


def run(
    config: PreferencesConfig, *, experts: ExpertsConfig, source: StageFolder, target: StageFolder, seed: int = 0
) -> Manifest:
    """Build pairs from the checked responses in `source` and write them to `target`.

    Args:
        config: Settings of this stage.
        experts: Settings of the experts stage: its vocabulary and thresholds apply here as well.
        source: Complete experts stage.
        target: Folder of this stage.
        seed: Seed of the run, used if the configuration has none.

    Raises:
        InputError: The vocabulary cannot be read.
        ConfigError: `target` was made with other settings.
        StageError: `source` is incomplete, or there is not a single pair.
    """
    seed = seed if config.seed is None else config.seed
    vocabulary = load_vocabulary(experts.vocabulary)
    cooccurrence = count_cooccurrence(source) if config.hard_negatives else None
    manifest = flow.run(
        target,
        flow.read_units(source),
        lambda rows: rows.map_batches(_BuildPairs(config, experts, seed, cooccurrence), **flow.LIGHT),
        total=source.complete().rows_in,
        block_rows=flow.light_block_rows(source.complete().rows_in),
        fingerprint=digest(
            [
                config.fingerprint(),
                vocabulary.fingerprint(),
                experts.fitted_thresholds().fingerprint(),
                grammar_fingerprint(),
                seed,
            ]
        ),
        inputs={"experts": source.data_hash()},
        metrics=lambda _folder, sums: measure_pairs(sums),
    )
    if not manifest.rows_out:
        counts = ", ".join(f"{reason} {count}" for reason, count in manifest.dropped.items())
        raise StageError(
            f"preferences: no pair could be made of {source.path} ({counts}); sample more responses per question "
            "(responses.generators.n), or look up in the drops which evidence is missing (`vlgenrm trace ID`)"
        )
    return manifest
