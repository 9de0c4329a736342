"""A critic on DeepSpeed: a vision-language model that says, before each token, what the response will be worth."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.engines.deepspeed_model import StepResult, TrainedModel, prepare_process
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.engines.vlm_module import load_module, with_adapters

if TYPE_CHECKING:
    import torch

    ValueLoss = Callable[[int, Batch, torch.Tensor], torch.Tensor]


class Critic(TrainedModel):
    """Weights, optimizer and checkpoints of its own; every method but `lr` is collective, as a `Learner`'s are."""

    def __init__(self, model: Path, config: DeepSpeedConfig, *, seed: int) -> None:
        """Load `model` (a Hugging Face folder) and put a linear layer to one number in the place of its word head.

        That layer begins as 0, and so do all values; with adapters it is trained as they are. Raises InputError for a
        folder that cannot be loaded.
        """
        import torch

        settings = prepare_process(config, seed)
        module = load_module(model, config, settings)
        width = module.config.get_text_config().hidden_size
        head = torch.nn.Linear(width, 1, dtype=module.dtype)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        module.set_output_embeddings(head)
        module = with_adapters(module, config.lora)
        head.requires_grad_(True)
        super().__init__(module, config, settings)

    def values(self, batches: Sequence[Batch]) -> "list[torch.Tensor]":
        """For each micro-batch, fillers too, the value of what stands before each token, [B, T] on the device.

        0 where a token has no weight. No gradient, no dropout. All workers have equally many micro-batches.
        """
        import torch

        self.engine.eval()
        with torch.no_grad():
            return [self._values(batch.to(self.device)) for batch in batches]

    def learn(self, batches: Sequence[Batch], loss: "ValueLoss", *, lr: float) -> StepResult:
        """One optimizer step: as `Learner.learn`, but `loss` gets values [B, T] where that one gets log-probabilities.

        Raises NonFiniteStep on all workers if loss or gradient are not finite on one.
        """
        return self.update(batches, lambda number, batch: loss(number, batch, self._values(batch)), lr=lr)

    def _values(self, batch: Batch) -> "torch.Tensor":
        """Of a batch on the device, [B, T]."""
        return batch.spread(self.outputs(batch, *batch.before).squeeze(-1).float())
