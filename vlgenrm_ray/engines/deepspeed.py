"""Training of a vision-language model on DeepSpeed: ZeRO 0-3, LoRA or full fine-tuning, one worker per process.

A `Learner` takes optimizer steps on any loss of token log-probabilities, computes log-probabilities of the present and
the initial weights, and yields its weights for export and weight sync. Every method except `lr` is collective: all
workers must call it together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, frozen_settings
from vlgenrm_ray.engines.deepspeed_model import DeepSpeedModel, StepResult, TrainedModel, prepare_process
from vlgenrm_ray.engines.exported_weights import exported_specs, exported_weights
from vlgenrm_ray.engines.log_probs import EntropyMode, LogProbs, log_probs
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.engines.vlm_module import add_adapters, load_module

if TYPE_CHECKING:
    import torch

    TokenLoss = Callable[[int, Batch, LogProbs], torch.Tensor]


class Learner(TrainedModel):
    """A model under training in this worker's process, in which torch.distributed is initialised."""

    def __init__(self, model: Path, config: DeepSpeedConfig, *, seed: int, keep_reference: bool = False) -> None:
        """Load a model.

        Args:
            model: Hugging Face folder.
            config: Settings of the training.
            seed: Seed of new adapters; equal on all workers.
            keep_reference: Keep the initial weights for `logprobs(reference=True)`, in a frozen copy that is
                partitioned like the trained ones. With adapters the base weights themselves stay the initial ones.

        Raises:
            InputError: The folder cannot be loaded.
        """
        settings = prepare_process(config, seed)
        super().__init__(add_adapters(load_module(model, config, settings), config.lora), config, settings)
        self.model_folder = model
        self._reference: DeepSpeedModel | None = None
        if keep_reference:
            self._reference = self if config.lora else _frozen(model, config, settings)

    @property
    def shared_width(self) -> int | None:
        """Hidden size of the decoder, which decides the cost of shared rows (see `shared_prompts`).

        None if samples must not share a row: by the settings, or because layers without full attention ignore the mask
        that separates them.
        """
        if not self.config.shared_prompts:
            return None
        config = self._model().config.get_text_config()
        all_full = {"full_attention"}.issuperset(getattr(config, "layer_types", None) or ())
        return int(config.hidden_size) if all_full else None

    # -- training ----------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch], *, denominator: float, lr: float) -> StepResult:
        """Take one step on weighted token cross-entropy, summed over all workers and divided by `denominator`.

        Arguments and errors as for `learn`. `denominator` must be equal on all workers.
        """

        def cross_entropy(_: int, batch: Batch, tokens: LogProbs) -> "torch.Tensor":
            return -(tokens.values * batch.weights).sum(-1) / denominator

        return self.learn(batches, cross_entropy, lr=lr)

    def learn(
        self,
        batches: Sequence[Batch],
        loss: "TokenLoss",
        *,
        lr: float,
        temperature: float = 1.0,
        entropy: EntropyMode = "none",
    ) -> StepResult:
        """Take one optimizer step on a loss of token log-probabilities.

        Args:
            batches: This worker's micro-batches, as many as every other worker has.
            loss: Maps the index of a micro-batch, the micro-batch and its log-probabilities [B, T], all on the device,
                to its part of the loss: [], or [B] per example. The loss of the step is the sum over all workers, so
                a denominator must be equal on all; parts of fillers are computed and multiplied by 0.
            lr: Learning rate.
            temperature: Temperature of the log-probabilities.
            entropy: Whether `loss` gets entropies, and whether they have a gradient.

        Raises:
            NonFiniteLoss: On all workers, if the loss is not finite on one.
            NonFiniteGradient: On all workers, if the gradient is not finite.
        """

        def batch_loss(number: int, batch: Batch) -> "torch.Tensor":
            return loss(number, batch, _log_probs(self, batch, temperature, entropy))

        return self.update(batches, batch_loss, lr=lr)

    def step_pairs(
        self,
        batches: Sequence[Batch],
        *,
        positive: Sequence[int],
        negative: Sequence[int],
        denominator: float,
        lr: float,
    ) -> StepResult:
        """Take one optimizer step on the Bradley-Terry loss of pairs, -log sigmoid(score(chosen) - score(rejected)).

        The score of a sequence is the log-odds of a positive against a negative token after it: the difference of two
        rows of the language-model head, applied to the last hidden state.

        Args:
            batches: Micro-batches whose rows 2i and 2i + 1 are the chosen and the rejected sequence of pair i.
            positive: Token ids of the positive verdict.
            negative: Token ids of the negative verdict.
            denominator: Number of pairs of the step over all workers.
            lr: Learning rate.

        Raises:
            NonFiniteStep: As for `learn`.
        """
        import torch

        def bradley_terry(_: int, batch: Batch) -> "torch.Tensor":
            scores = self._verdict_scores(batch, positive, negative)
            losses = -torch.nn.functional.logsigmoid(scores[0::2] - scores[1::2]) / denominator
            # Half of a pair's loss belongs to each of its rows.
            return losses.repeat_interleave(2) / 2

        return self.update(batches, bradley_terry, lr=lr)

    # -- inference ---------------------------------------------------------------------------------------------

    def logprobs(
        self, batches: Sequence[Batch], *, reference: bool = False, temperature: float = 1.0
    ) -> "list[torch.Tensor]":
        """Compute token log-probabilities under softmax(logits / temperature), without gradient and dropout.

        Args:
            batches: Micro-batches, fillers included; as many as every other worker has.
            reference: Use the initial weights instead of the current ones.
            temperature: Temperature of the distribution.

        Returns:
            For each micro-batch a tensor [B, T] on the device; 0 where a token has no weight.

        Raises:
            ValueError: The reference was not kept.
        """
        import torch

        model = self._reference if reference else self
        if model is None:
            raise ValueError("reference=True needs a Learner created with keep_reference=True")
        model.engine.eval()
        with torch.no_grad(), self.module.disable_adapter() if reference and model is self else nullcontext():
            return [_log_probs(model, batch.to(self.device), temperature, "none").values for batch in batches]

    def word_probabilities(self, batch: Batch, words: Mapping[str, Sequence[int]]) -> list[dict[str, float]]:
        """Return for each example the probability of each word, summed over its token ids, as the next token."""
        import torch

        self.engine.eval()
        with torch.no_grad():
            probabilities = self._last_outputs(batch).softmax(-1).cpu()
        return [{word: float(row[list(ids)].sum()) for word, ids in words.items()} for row in probabilities]

    def _verdict_scores(self, batch: Batch, positive: Sequence[int], negative: Sequence[int]) -> "torch.Tensor":
        """Return the log-odds [B] of a positive against a negative token after each sequence."""
        logits = self._last_outputs(batch)
        return logits[:, list(positive)].logsumexp(-1) - logits[:, list(negative)].logsumexp(-1)

    def _last_outputs(self, batch: Batch) -> "torch.Tensor":
        """Return the logits [B, vocabulary] of the token after each sequence."""
        import torch

        last = batch.inputs["attention_mask"].sum(-1) - 1
        return self.outputs(batch, torch.arange(len(last), device=last.device), last).float()

    # -- weights -----------------------------------------------------------------------------------------------

    def weights(
        self, *, trained_only: bool = False, training_dtype: bool = False
    ) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield names and whole weights one by one, as for an export, adapters merged; see `exported_weights`.

        Every worker must iterate over all of them, and gets all of them.
        """
        return exported_weights(
            self._model(), self.model_folder, trained_only=trained_only, training_dtype=training_dtype
        )

    def tensor_specs(self, *, trained_only: bool = False, training_dtype: bool = False) -> list[TensorSpec]:
        """Return the specs of the weights that `weights` yields, in its order. Not collective."""
        return exported_specs(
            self._model(), self.model_folder, trained_only=trained_only, training_dtype=training_dtype
        )

    def close(self) -> None:
        """Free the memory of DeepSpeed."""
        super().close()
        if self._reference not in (None, self):
            self._reference.close()

    def _model(self) -> Any:
        """Return the transformers model, which contains the adapters if there are any."""
        return self.module.get_base_model() if self.config.lora else self.module


def _frozen(model: Path, config: DeepSpeedConfig, settings: dict[str, Any]) -> DeepSpeedModel:
    module = load_module(model, config, settings)
    module.requires_grad_(False)
    return DeepSpeedModel(module, frozen_settings(settings))


def _log_probs(model: DeepSpeedModel, batch: Batch, temperature: float, entropy: EntropyMode) -> LogProbs:
    """Return the log-probabilities of a batch on the device, [B, T]."""
    targets = log_probs(
        model.outputs(batch, *batch.predictor_positions), batch.target_ids, temperature=temperature, entropy=entropy
    )
    return LogProbs(batch.scatter(targets.values), None if targets.entropy is None else batch.scatter(targets.entropy))
