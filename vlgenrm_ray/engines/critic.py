"""Critic of PPO on DeepSpeed: a vision-language model that predicts the return before each token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.engines.deepspeed_model import StepResult, TrainedModel, prepare_process
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.engines.vlm_module import add_adapters, load_module

if TYPE_CHECKING:
    import torch

    ValueLoss = Callable[[int, Batch, torch.Tensor], torch.Tensor]


class Critic(TrainedModel):
    """Value model with its own weights, optimizer and checkpoints. Every method except `lr` is collective."""

    def __init__(self, model: Path, config: DeepSpeedConfig, *, seed: int) -> None:
        """Load `model` (a Hugging Face folder) with a linear value head in the place of its language-model head.

        The head is initialised to 0, hence all values are. It is trained in addition to adapters, if there are any.
        Raises InputError for a folder that cannot be loaded.
        """
        import torch

        settings = prepare_process(config, seed)
        module = load_module(model, config, settings)
        width = module.config.get_text_config().hidden_size
        head = torch.nn.Linear(width, 1, dtype=module.dtype)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        module.set_output_embeddings(head)
        module = add_adapters(module, config.lora)
        head.requires_grad_(True)
        super().__init__(module, config, settings)

    def values(self, batches: Sequence[Batch]) -> "list[torch.Tensor]":
        """Predict the return before each token, without gradient and dropout.

        Args:
            batches: Micro-batches, fillers included; as many as every other worker has.

        Returns:
            For each micro-batch a tensor [B, T] on the device; 0 where a token has no weight.
        """
        import torch

        self.engine.eval()
        with torch.no_grad():
            return [self._values(batch.to(self.device)) for batch in batches]

    def learn(self, batches: Sequence[Batch], loss: "ValueLoss", *, lr: float) -> StepResult:
        """Take one optimizer step as `Learner.learn` does; `loss` gets values [B, T] instead of log-probabilities.

        Raises NonFiniteStep on all workers if loss or gradient is not finite on one.
        """
        return self.update(batches, lambda number, batch: loss(number, batch, self._values(batch)), lr=lr)

    def _values(self, batch: Batch) -> "torch.Tensor":
        """Return the values of a batch on the device, [B, T]."""
        return batch.scatter(self.outputs(batch, *batch.predictor_positions).squeeze(-1).float())
