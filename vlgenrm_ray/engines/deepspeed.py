"""A vision-language model that learns, on DeepSpeed: ZeRO 0-3, LoRA or full, one worker per process.

It learns from any loss of its tokens' log-probabilities, tells those log-probabilities and the ones it began with, and
hands out its weights. Every method but `lr` is collective: all workers call it together, or all wait.
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
from vlgenrm_ray.engines.vlm_module import load_module, with_adapters

if TYPE_CHECKING:
    import torch

    TokenLoss = Callable[[int, Batch, LogProbs], torch.Tensor]


class Learner(TrainedModel):
    """A model under training in this worker's process; torch.distributed is initialised already."""

    def __init__(self, model: Path, config: DeepSpeedConfig, *, seed: int, keep_reference: bool = False) -> None:
        """Load `model` (a Hugging Face folder). Equal seeds on all workers: adapters begin equal.

        `keep_reference`: `logprobs` can then be asked of the weights in `model` as well. They are held beside those
        that learn, frozen and shared out like them; with adapters nothing is held, the weights below are the reference.
        Raises InputError for a folder that cannot be loaded.
        """
        settings = prepare_process(config, seed)
        super().__init__(with_adapters(load_module(model, config, settings), config.lora), config, settings)
        self.model_folder = model
        self._reference: DeepSpeedModel | None = None
        if keep_reference:
            self._reference = self if config.lora else _frozen(model, config, settings)

    @property
    def shared_width(self) -> int | None:
        """Hidden size of the decoder; None where samples cannot share a row, for some layer looks elsewhere than a mask
        says."""
        config = self._model().config.get_text_config()
        whole = {"full_attention"}.issuperset(getattr(config, "layer_types", None) or ())
        return int(config.hidden_size) if whole else None

    # -- learning ----------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch], *, denominator: float, lr: float) -> StepResult:
        """One optimizer step on the sum over all workers of weight x token cross-entropy, divided by `denominator`.

        Batches and denominator as for `learn`. Raises NonFiniteStep as `learn` does.
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
        """One optimizer step on this worker's micro-batches, as many as every other worker has.

        `loss` gets a micro-batch's number, the micro-batch and its log-probabilities [B, T] at `temperature`, all on
        the device, and gives its part of the step's loss: [], or [B] by example. The step's loss is the sum of all
        parts of all workers, so what a loss divides by must be the same for all; parts of fillers are asked for, and
        count 0. Raises NonFiniteLoss on all workers if the loss is not finite on one, with the examples of the parts at
        fault, and NonFiniteGradient if the gradient is not.
        """

        def of(number: int, batch: Batch) -> "torch.Tensor":
            return loss(number, batch, _log_probs(self, batch, temperature, entropy))

        return self.update(batches, of, lr=lr)

    # -- asking ------------------------------------------------------------------------------------------------

    def logprobs(
        self, batches: Sequence[Batch], *, reference: bool = False, temperature: float = 1.0
    ) -> "list[torch.Tensor]":
        """For each micro-batch, fillers too, the log-probabilities of its tokens given those before, [B, T] on the
        device: 0 where a token has no weight. No gradient, no dropout; of softmax(logits / temperature).

        All workers have equally many micro-batches. `reference`: of the weights in the folder it began with. Raises
        ValueError for a reference that was not kept.
        """
        import torch

        model = self._reference if reference else self
        if model is None:
            raise ValueError("reference=True needs a learner that was made with keep_reference=True")
        model.engine.eval()
        with torch.no_grad(), self.module.disable_adapter() if reference and model is self else nullcontext():
            return [_log_probs(model, batch.to(self.device), temperature, "none").values for batch in batches]

    def word_probabilities(self, batch: Batch, words: Mapping[str, Sequence[int]]) -> list[dict[str, float]]:
        """For each example, the probability that its next token is one of each word's token ids."""
        import torch

        self.engine.eval()
        last = batch.inputs["attention_mask"].sum(-1) - 1
        with torch.no_grad():
            probabilities = self.outputs(batch, torch.arange(len(last)), last).float().softmax(-1).cpu()
        return [{word: float(row[list(ids)].sum()) for word, ids in words.items()} for row in probabilities]

    # -- handing out -------------------------------------------------------------------------------------------

    def weights(
        self, *, trained_only: bool = False, training_dtype: bool = False
    ) -> "Iterator[tuple[str, torch.Tensor]]":
        """Names and whole weights as an export has them, adapters merged, one by one: see `exported_weights`.

        Every worker goes through all of them, and gets them all.
        """
        return exported_weights(
            self._model(), self.model_folder, trained_only=trained_only, training_dtype=training_dtype
        )

    def tensor_specs(self, *, trained_only: bool = False, training_dtype: bool = False) -> list[TensorSpec]:
        """Names, dtypes and shapes of what `weights` gives, in its order. Not collective."""
        return exported_specs(
            self._model(), self.model_folder, trained_only=trained_only, training_dtype=training_dtype
        )

    def close(self) -> None:
        """Free what DeepSpeed holds."""
        super().close()
        if self._reference not in (None, self):
            self._reference.close()

    def _model(self) -> Any:
        """The transformers model, adapters within its layers."""
        return self.module.get_base_model() if self.config.lora else self.module


def _frozen(model: Path, config: DeepSpeedConfig, settings: dict[str, Any]) -> DeepSpeedModel:
    module = load_module(model, config, settings)
    module.requires_grad_(False)
    return DeepSpeedModel(module, frozen_settings(settings))


def _log_probs(model: DeepSpeedModel, batch: Batch, temperature: float, entropy: EntropyMode) -> LogProbs:
    """Of a batch on the device, [B, T]."""
    found = log_probs(model.outputs(batch, *batch.before), batch.words, temperature=temperature, entropy=entropy)
    return LogProbs(batch.spread(found.values), None if found.entropy is None else batch.spread(found.entropy))
