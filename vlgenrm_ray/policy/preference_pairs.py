"""Offline training on preference pairs: their encoding, their division into micro-batches, and the optimizer step.

A pair is two sequences, or three for losses that compare the chosen response with itself under another image. All
sequences of a pair are in one micro-batch, and chosen and rejected response share a row of the model if that is
cheaper. The loss of a pair is `Algorithm.pair_loss`, a function of log-ratios to the initial policy. Every method of
`PreferenceUpdater` is collective: all workers call it together.
"""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.batch_plan import MicroBatch, Step, plan_step
from vlgenrm_ray.engines.vlm_batch import Batch, TextError, Tokens, VlmEncoder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy.algorithms import resolve_algorithm
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.losses import MetricAccumulator, PairLogRatios
from vlgenrm_ray.policy.rollouts import step_indices
from vlgenrm_ray.policy.updater import gather_metrics, non_finite_error
from vlgenrm_ray.policy.worker_context import WorkerContext
from vlgenrm_ray.records import ImageRef, Question

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.log_probs import LogProbs

_MIN_CROP, _MAX_CROP = 0.01, 0.2
"""Smallest and largest share of the image's area that the other image shows (arXiv 2406.11839, 4.1: 0 to 20 %)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """The sequences of one preference pair."""

    question: Question
    chosen: Tokens
    rejected: Tokens
    other_images: tuple[ImageRef, ...] = ()
    """Images in place of the question's, for the chosen response once more; () if the loss needs none."""

    @property
    def num_sequences(self) -> int:
        """Sequences that go through the model."""
        return 3 if self.other_images else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Pairs of one step, and the micro-batches they are divided into."""

    pairs: tuple[EncodedPair, ...]
    is_shared: bool
    """Chosen and rejected response share a row, with their prompt once."""
    plan: Step
    """Micro-batches; their members are positions in `pairs`."""


def labelled_pairs(questions: Sequence[Question]) -> list[Question]:
    """Return the questions that come with two different responses."""
    return [q for q in questions if q.chosen and q.rejected and q.chosen != q.rejected]


def encode_pair(
    question: Question, encoder: VlmEncoder, *, max_tokens: int, other_images: tuple[ImageRef, ...] = ()
) -> EncodedPair | None:
    """Encode a pair; None if it has more than `max_tokens` tokens in all, or a text without tokens."""
    try:
        chosen, rejected = (
            encoder.encode(question.images, question.text, response or "")
            for response in (question.chosen, question.rejected)
        )
    except TextError:
        return None
    pair = EncodedPair(question=question, chosen=chosen, rejected=rejected, other_images=other_images)
    return pair if pair.num_sequences * max(len(chosen), len(rejected)) <= max_tokens else None


def plan_pairs(
    pairs: Sequence[EncodedPair], *, shared_width: int | None, tokens_per_batch: int, num_workers: int
) -> PairBatch:
    """Divide pairs into micro-batches of at most `tokens_per_batch` padded tokens.

    Args:
        pairs: One or more pairs, of equally many sequences.
        shared_width: Hidden size of the decoder, which decides the cost of shared rows; None: never share.
        tokens_per_batch: Largest number of padded tokens of a micro-batch.
        num_workers: Workers; each gets equally many micro-batches.
    """
    num_sequences = pairs[0].num_sequences
    is_shared = shared_width is not None and _sharing_is_cheaper(pairs, shared_width, tokens_per_batch)
    lengths = [_longest_row(pair, is_shared) for pair in pairs]
    plan = plan_step(
        range(len(pairs)),
        lengths,
        tokens_per_batch=tokens_per_batch // (num_sequences - is_shared),
        workers=num_workers,
    )
    return PairBatch(pairs=tuple(pairs), is_shared=is_shared, plan=plan)


def _sharing_is_cheaper(pairs: Sequence[EncodedPair], width: int, tokens_per_batch: int) -> bool:
    together = [_longest_row(pair, True) for pair in pairs]
    if max(together) > tokens_per_batch // (pairs[0].num_sequences - 1):
        return False
    shared = sum(shared_prompts.row_cost(length, shared=True, width=width) for length in together)
    apart = [len(tokens) for pair in pairs for tokens in (pair.chosen, pair.rejected)]
    return shared < sum(shared_prompts.row_cost(length, shared=False, width=width) for length in apart)


def _longest_row(pair: EncodedPair, is_shared: bool) -> int:
    if is_shared:
        return shared_prompts.row_length([pair.chosen, pair.rejected])
    return max(len(pair.chosen), len(pair.rejected))


def random_crop(ref: ImageRef, limits: ImageLimits, *, seed: str) -> ImageRef:
    """Return a random crop of an image, enlarged to the image's size so that it has equally many tokens.

    Args:
        ref: Image to crop.
        limits: Limits of the image.
        seed: Decides place and size of the crop.

    Raises:
        ImageError: The image cannot be read.
    """
    rng = random.Random(seed)
    image = images.read(ref, limits)
    side = rng.uniform(_MIN_CROP, _MAX_CROP) ** 0.5
    width, height = (max(1, round(side * length)) for length in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height)).resize(image.size)
    out = io.BytesIO()
    crop.save(out, "PNG", compress_level=1)
    data = out.getvalue()
    return ImageRef(
        uri=images.data_url(data), sha256=hashlib.sha256(data).hexdigest(), width=ref.width, height=ref.height
    )


class PreferenceUpdater:
    """Optimizer steps of the policy on preference pairs, on one training worker."""

    def __init__(
        self,
        config: PolicyConfig,
        encoder: VlmEncoder,
        learner: "Learner",
        context: WorkerContext,
        *,
        questions: Sequence[Question],
        held_out: Sequence[Question],
    ) -> None:
        """Create the updater of one worker.

        Args:
            config: Settings of the training.
            encoder: Encoder of prompts and images.
            learner: Training engine of the policy, which keeps the initial weights.
            context: This worker among all.
            questions: Questions to train on; those without two different responses are not used.
            held_out: Questions of the evaluation, likewise.

        Raises:
            StageError: No question has two different responses.
            ConfigError: There are fewer pairs than a step needs.
        """
        self.config = config
        self.encoder = encoder
        self.learner = learner
        self.context = context
        self.pairs = labelled_pairs(questions)
        self.held_out = labelled_pairs(held_out)
        self._algorithm = resolve_algorithm(config.algorithm.algorithm)
        if not self.pairs:
            raise StageError(
                f"stage 'policy': algorithm {config.algorithm.algorithm} learns from preference pairs, and none of the "
                f"pool's {len(questions)} questions has a chosen and a rejected response; name a run folder "
                "(pool.source: run) or data with pairs"
            )
        step_indices(len(self.pairs), config.questions_per_step, seed=config.seed, step=0)

    def update(self, step: int) -> dict[str, float]:
        """Take the optimizer steps of a training step.

        Args:
            step: Number of steps done before; decides the pairs, their crops and the learning rate.

        Returns:
            Metrics of the step over all workers: `loss`, `grad_norm`, `lr`, `pairs`, `pairs_skipped` (too long), and
            over the pairs `pair_accuracy` (share whose chosen response gained more than the rejected one),
            `pair_margin`, `chosen_log_ratio`, `rejected_log_ratio`, and with another image `image_margin`.

        Raises:
            StageError: Loss or gradient is not finite.
            ImageError: An image cannot be read.
        """
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteStep

        indices = step_indices(len(self.pairs), self.config.questions_per_step, seed=self.config.seed, step=step)
        encoded = [self._encode(self.pairs[index], step) for index in indices]
        pairs = [pair for pair in encoded if pair is not None]
        metrics = {"pairs": float(len(pairs)), "pairs_skipped": float(len(encoded) - len(pairs))}
        accumulators: list[MetricAccumulator] = []
        num_updates = min(self.config.updates_per_step, len(pairs))
        for i in range(num_updates):
            part = pairs[len(pairs) * i // num_updates : len(pairs) * (i + 1) // num_updates]
            try:
                metrics |= self._update(part, step, accumulators)
            except NonFiniteStep as error:
                raise non_finite_error(error, step) from error
        return metrics | gather_metrics(accumulators)

    def evaluate(self) -> dict[str, float]:
        """Return for each held-out pair, by question id, 1 if the policy prefers the chosen response, else 0.

        The preference is the sign of the margin of log-ratios, 0 before the first step: a tie counts as 0.5. Pairs that
        are too long are left out.
        """
        pairs = [pair for q in self.held_out if (pair := self._encode(q, None)) is not None]
        if not pairs:
            return {}
        import torch

        batch = self._plan(pairs)
        results: list[tuple[str, float]] = []
        for micro in batch.plan.of(self.context.rank):
            inputs = self._to_batch(batch, micro)
            (values,), (reference,) = self.learner.logprobs([inputs]), self.learner.logprobs([inputs], reference=True)
            ratios = _log_ratios(values - reference, batch.pairs[0].num_sequences)
            signs = ((ratios.chosen - ratios.rejected).sign() + 1) / 2
            if micro.counts:
                ids = [batch.pairs[member].question.id for member in micro.members]
                results += zip(ids, signs.tolist(), strict=True)
        gathered: list[list[tuple[str, float]] | None] = [None] * self.context.world_size
        torch.distributed.all_gather_object(gathered, results)
        return dict(sorted(row for worker in gathered for row in worker or ()))

    # -- one optimizer step ------------------------------------------------------------------------------------

    def _update(
        self, pairs: Sequence[EncodedPair], step: int, accumulators: list[MetricAccumulator]
    ) -> dict[str, float]:
        algorithm, batch = self.config.algorithm, self._plan(pairs)
        micro_batches = batch.plan.of(self.context.rank)
        inputs = [self._to_batch(batch, micro).to(self.learner.device) for micro in micro_batches]
        references = self.learner.logprobs(inputs, reference=True)
        pair_loss = self._algorithm.pair_loss
        assert pair_loss is not None

        def loss(number: int, inputs: Batch, tokens: "LogProbs") -> "torch.Tensor":
            ratios = _log_ratios(tokens.values - references[number], pairs[0].num_sequences)
            if inputs.counts:
                accumulators.append(_pair_metrics(ratios, algorithm.kl.coefficient))
            return pair_loss(ratios, algorithm).sum() / len(pairs)

        lr = self.learner.lr(step, self.config.steps)
        result = self.learner.learn(inputs, loss, lr=lr)
        return {"lr": lr, "loss": result.loss, "grad_norm": result.grad_norm}

    def _encode(self, question: Question, step: int | None) -> EncodedPair | None:
        """Encode a pair, with crops of its images if the loss needs them; without a step, for evaluation, never."""
        other_images: tuple[ImageRef, ...] = ()
        if self._algorithm.needs_other_image and step is not None:
            other_images = tuple(
                random_crop(image, self.config.images, seed=f"{self.config.seed}/{step}/{question.id}/{number}")
                for number, image in enumerate(question.images)
            )
        return encode_pair(question, self.encoder, max_tokens=self.config.tokens_per_batch, other_images=other_images)

    def _plan(self, pairs: Sequence[EncodedPair]) -> PairBatch:
        return plan_pairs(
            pairs,
            shared_width=self.learner.shared_width,
            tokens_per_batch=self.config.tokens_per_batch,
            num_workers=self.context.world_size,
        )

    def _to_batch(self, batch: PairBatch, micro: MicroBatch) -> Batch:
        """Build a batch whose examples are the sequences of its pairs: chosen, rejected, chosen with other images."""
        examples: list[tuple[Tokens, Sequence[ImageRef], float]] = []
        rows: list[range] = []
        for member in micro.members:
            pair = batch.pairs[member]
            start = len(examples)
            examples += [(tokens, pair.question.images, 1.0) for tokens in (pair.chosen, pair.rejected)]
            rows += (
                [range(start, start + 2)] if batch.is_shared else [range(start, start + 1), range(start + 1, start + 2)]
            )
            if pair.other_images:
                rows.append(range(start + 2, start + 3))
                examples.append((pair.chosen, pair.other_images, 1.0))
        return self.encoder.batch(examples, counts=micro.counts, shared_rows=rows)


def _log_ratios(token_ratios: "torch.Tensor", num_sequences: int) -> PairLogRatios:
    """Sum log-ratios of tokens [B, T] to those of responses, and sort them by their place in the pair."""
    by_place = token_ratios.sum(-1).view(-1, num_sequences).unbind(-1)
    return PairLogRatios(
        chosen=by_place[0], rejected=by_place[1], chosen_other_image=by_place[2] if num_sequences == 3 else None
    )


def _pair_metrics(ratios: PairLogRatios, beta: float) -> MetricAccumulator:
    """Accumulate the metrics of pairs; see `PreferenceUpdater.update`."""
    import torch

    margin = ratios.chosen - ratios.rejected
    means = {
        "pair_accuracy": (margin.sign() + 1) / 2,
        "pair_margin": beta * margin,
        "chosen_log_ratio": ratios.chosen,
        "rejected_log_ratio": ratios.rejected,
    }
    if ratios.chosen_other_image is not None:
        means["image_margin"] = beta * (ratios.chosen - ratios.chosen_other_image)
    return MetricAccumulator.from_tokens(torch.ones_like(margin, dtype=torch.bool), means=means, maxima={})
