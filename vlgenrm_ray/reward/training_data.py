"""The examples of a round as every worker sees them: same order, same lengths, same plan.

A step's loss is sum(w x CE) / sum(w x tokens) over the step's examples on all workers (`normalise = tokens`), or
sum(w x mean CE) / sum(w) (`examples`), where w is an example's weight after Yes and No were balanced. Numerator and
denominator run over all workers, so the loss does not depend on how examples fell to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.batch_plan import Step, num_steps, plan_epoch
from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Dropped, Example, ExampleKind
from vlgenrm_ray.reward.balance import Entry, Labelled, entries
from vlgenrm_ray.reward.training_config import TrainingConfig

if TYPE_CHECKING:
    import pyarrow as pa


class Examples:
    """All examples of a stage folder, ordered by id: the same list whatever shards they fell into."""

    def __init__(self, source: StageFolder) -> None:
        rows = [record for shard in source.shards() for record in _records(shard)]
        self._rows: list[dict[str, Any]] = sorted(rows, key=lambda row: str(row["id"]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return from_row(Example, self._rows[index])


def _records(shard: Any) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table: pa.Table = pq.read_table(shard, columns=["records"])
    found: list[dict[str, Any]] = table.column("records").combine_chunks().flatten().to_pylist()
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """An example that fits."""

    index: int
    length: int
    num_targets: int
    traits: Labelled


def measure(
    examples: Examples, share: range, encoder: VlmEncoder, limits: ImageLimits, max_tokens: int
) -> tuple[list[Measured], list[Dropped]]:
    """Measure the examples at `share`; those that cannot be learnt are dropped with their reason, none is cut."""
    fit: list[Measured] = []
    dropped: list[Dropped] = []
    verified: set[str] = set()
    for index in share:
        example = examples[index]
        try:
            if example.image.uri not in verified:
                images.verify(example.image, limits)
                verified.add(example.image.uri)
            tokens = encoder.encode(example.image, example.prompt, example.completion)
        except ImageError as error:
            dropped.append(_dropped(example, error.reason, error.detail))
        except TextError as error:
            dropped.append(_dropped(example, DropReason.MALFORMED_ROW, str(error)))
        else:
            if len(tokens) > max_tokens:
                detail = f"{len(tokens)} tokens, limit {max_tokens} (training.tokens_per_batch)"
                dropped.append(_dropped(example, DropReason.EXAMPLE_TOO_LONG, detail))
                continue
            traits = Labelled(example.kind, example.label, example.weight, example.stratum)
            fit.append(Measured(index, len(tokens), tokens.num_targets, traits))
    return fit, dropped


def _dropped(example: Example, reason: DropReason, detail: str) -> Dropped:
    return Dropped(stage="training", id=example.id, reason=reason.value, detail=detail)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One optimizer step, resolved to examples."""

    number: int
    epoch: int
    step: Step
    entries: Sequence[Entry]
    """The epoch's entries; `step` points into them. `Entry.index` points into the measured examples."""
    denominator: float
    num_tokens: int


def token_weight(entry: Entry, measured: Sequence[Measured], config: TrainingConfig) -> float:
    """Weight of each completion token of an entry, before division by the step's denominator."""
    return entry.weight if config.normalise == "tokens" else entry.weight / measured[entry.index].num_targets


def steps_per_epoch(measured: Sequence[Measured], config: TrainingConfig) -> int:
    """Optimizer steps of one epoch; the same for all epochs."""
    turn = entries([m.traits for m in measured], config.balance, seed=config.seed, epoch=0)
    return num_steps(len(turn), config.examples_per_step)


def total_steps(measured: Sequence[Measured], config: TrainingConfig) -> int:
    """Optimizer steps of the whole training."""
    total = config.epochs * steps_per_epoch(measured, config)
    return min(total, config.max_steps) if config.max_steps else total


def planned(measured: Sequence[Measured], config: TrainingConfig, start: int) -> Iterator[PlannedStep]:
    """The steps from number `start` on. A step depends on settings and data alone, never on what ran before it."""
    total, per_epoch = total_steps(measured, config), steps_per_epoch(measured, config)
    traits = [m.traits for m in measured]
    for epoch in range(start // per_epoch, -(-total // per_epoch)):
        turn = entries(traits, config.balance, seed=config.seed, epoch=epoch)
        steps = plan_epoch(
            [measured[e.index].length for e in turn],
            epoch=epoch,
            seed=config.seed,
            examples_per_step=config.examples_per_step,
            tokens_per_batch=config.tokens_per_batch,
            workers=config.workers,
        )
        for offset, step in enumerate(steps):
            number = epoch * per_epoch + offset
            if start <= number < total:
                yield _resolve(number, epoch, step, turn, measured, config)


def _resolve(
    number: int, epoch: int, step: Step, turn: Sequence[Entry], measured: Sequence[Measured], config: TrainingConfig
) -> PlannedStep:
    members = [turn[m] for m in step.members()]
    denominator = sum(token_weight(e, measured, config) * measured[e.index].num_targets for e in members)
    num_tokens = sum(measured[e.index].length for e in members)
    return PlannedStep(number, epoch, step, turn, denominator, num_tokens)


def probe_prefix(example: Example) -> str | None:
    """The assistant's words up to the verdict, without it: after them p(Yes) and p(No) are read. None for an answer."""
    if example.kind is ExampleKind.ANSWER or not example.completion.casefold().endswith(example.label):
        return None
    return example.completion[: len(example.completion) - len(example.label)].rstrip()
