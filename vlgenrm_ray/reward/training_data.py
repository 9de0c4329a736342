"""Training plan of a round, identical on every worker: the examples' order, lengths and micro-batches.

A step's loss is sum(w x CE) / sum(w x tokens) over the step's examples on all workers (`normalise = tokens`), or
sum(w x mean CE) / sum(w) (`examples`), where w is an example's weight after Yes and No were balanced. Numerator and
denominator run over all workers, so the loss does not depend on how examples are distributed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.mapped_records import MappedRecords
from vlgenrm_ray.engines.batch_plan import Step, num_steps, plan_epoch
from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Dropped, Example, ExampleKind
from vlgenrm_ray.reward.balance import ExampleTraits, WeightedExample, balance_examples
from vlgenrm_ray.reward.training_config import TrainingConfig


@dataclass(frozen=True, slots=True)
class MeasuredExample:
    """Lengths of an example that fits into a micro-batch."""

    index: int
    """Position in the `MappedRecords` of the examples."""
    length: int
    """Tokens, image tokens included."""
    num_targets: int
    """Completion tokens, over which the loss is taken."""
    traits: ExampleTraits


def measure_examples(
    examples: MappedRecords[Example], indices: range, encoder: VlmEncoder, limits: ImageLimits, max_tokens: int
) -> tuple[list[MeasuredExample], list[Dropped]]:
    """Measure the examples at `indices`. Drop those that cannot be trained on, with their reason; none is cut.

    Returns:
        The examples that fit, and a `Dropped` for each of the others.
    """
    measured: list[MeasuredExample] = []
    dropped: list[Dropped] = []
    verified_uris: set[str] = set()
    for index in indices:
        example = examples[index]
        try:
            for image in example.images:
                if image.uri not in verified_uris:
                    # The size is checked as well: an image processor may raise for an aspect ratio.
                    images.size(images.verify(image, limits), limits, image.uri)
                    verified_uris.add(image.uri)
            tokens = encoder.encode(example.images, example.prompt, example.completion)
        except ImageError as error:
            dropped.append(_drop(example, error.reason, error.detail))
        except TextError as error:
            dropped.append(_drop(example, DropReason.MALFORMED_ROW, str(error)))
        else:
            if len(tokens) > max_tokens:
                detail = f"{len(tokens)} tokens, limit {max_tokens} (training.tokens_per_batch)"
                dropped.append(_drop(example, DropReason.EXAMPLE_TOO_LONG, detail))
                continue
            traits = ExampleTraits(example.kind, example.label, example.weight, example.stratum)
            measured.append(MeasuredExample(index, len(tokens), tokens.num_targets, traits))
    return measured, dropped


def _drop(example: Example, reason: DropReason, detail: str) -> Dropped:
    return Dropped(stage="training", id=example.id, reason=reason.value, detail=detail)


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimizer step with its examples."""

    number: int
    """Step of the whole training, from 0."""
    epoch: int
    plan: Step
    """Micro-batches of each worker; they point into `epoch_examples`."""
    epoch_examples: Sequence[WeightedExample]
    """Balanced examples of the epoch; `WeightedExample.index` points into the measured examples."""
    denominator: float
    """Divisor of the step's summed loss, over all workers."""
    num_tokens: int


def token_weight(weighted: WeightedExample, measured: Sequence[MeasuredExample], config: TrainingConfig) -> float:
    """Compute the weight of each completion token of an example, before division by the step's denominator."""
    if config.normalise == "tokens":
        return weighted.weight
    return weighted.weight / measured[weighted.index].num_targets


def steps_per_epoch(measured: Sequence[MeasuredExample], config: TrainingConfig) -> int:
    """Count the optimizer steps of one epoch; the number is the same for all epochs."""
    epoch_examples = balance_examples([m.traits for m in measured], config.balance, seed=config.seed, epoch=0)
    return num_steps(len(epoch_examples), config.examples_per_step)


def total_steps(measured: Sequence[MeasuredExample], config: TrainingConfig) -> int:
    """Count the optimizer steps of the whole training."""
    total = config.epochs * steps_per_epoch(measured, config)
    return min(total, config.max_steps) if config.max_steps else total


def plan_steps(measured: Sequence[MeasuredExample], config: TrainingConfig, start: int) -> Iterator[TrainingStep]:
    """Yield the steps from number `start` on. A step depends on settings and data alone, never on earlier steps."""
    total, per_epoch = total_steps(measured, config), steps_per_epoch(measured, config)
    traits = [m.traits for m in measured]
    for epoch in range(start // per_epoch, -(-total // per_epoch)):
        epoch_examples = balance_examples(traits, config.balance, seed=config.seed, epoch=epoch)
        plans = plan_epoch(
            [measured[e.index].length for e in epoch_examples],
            epoch=epoch,
            seed=config.seed,
            examples_per_step=config.examples_per_step,
            tokens_per_batch=config.tokens_per_batch,
            workers=config.workers,
        )
        for offset, plan in enumerate(plans):
            number = epoch * per_epoch + offset
            if start <= number < total:
                yield _build_step(number, epoch, plan, epoch_examples, measured, config)


def _build_step(
    number: int,
    epoch: int,
    plan: Step,
    epoch_examples: Sequence[WeightedExample],
    measured: Sequence[MeasuredExample],
    config: TrainingConfig,
) -> TrainingStep:
    members = [epoch_examples[m] for m in plan.members()]
    denominator = sum(token_weight(e, measured, config) * measured[e.index].num_targets for e in members)
    num_tokens = sum(measured[e.index].length for e in members)
    return TrainingStep(number, epoch, plan, epoch_examples, denominator, num_tokens)


def probe_prefix(example: Example) -> str | None:
    """Return the completion up to its verdict, after which p(Yes) and p(No) are read. None for an answer."""
    if example.kind is ExampleKind.ANSWER or not example.completion.casefold().endswith(example.label):
        return None
    return example.completion[: len(example.completion) - len(example.label)].rstrip()
