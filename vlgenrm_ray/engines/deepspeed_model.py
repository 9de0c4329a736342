"""Models on DeepSpeed: forward pass, optimizer step on any loss, checkpoints. One worker per process.

The caller owns batches, their order, losses and denominators; the model owns weights, optimizer and collectives.
`deepspeed.Learner` and `critic.Critic` build on `TrainedModel`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, engine_settings, lr_factor
from vlgenrm_ray.engines.shared_prompts import model_inputs
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.engines.vlm_module import SharedVisionTower

if TYPE_CHECKING:
    import torch

_TAG = "state"


class NonFiniteStep(ArithmeticError):
    """Loss or gradient of a step is NaN or infinite. The weights were not changed."""

    quantity: str
    """`loss` or `gradient`."""


class NonFiniteLoss(NonFiniteStep):
    """The loss of a step is not finite."""

    quantity = "loss"

    def __init__(self, examples: Sequence[tuple[int, int]]) -> None:
        """Create the error. `examples`: this worker's examples with such a loss, as (batch, index in the batch)."""
        super().__init__(examples)
        self.examples = examples


class NonFiniteGradient(NonFiniteStep):
    """The gradient of a step is not finite, though its loss is."""

    quantity = "gradient"


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of one optimizer step, over all workers."""

    loss: float
    grad_norm: float
    """Global norm of the gradient, before clipping."""


def prepare_process(config: DeepSpeedConfig, seed: int) -> dict[str, Any]:
    """Initialise DeepSpeed in a process in which torch.distributed is initialised; return its configuration.

    With equal seeds on all workers, adapters and heads that are added to a model are initialised equally.
    """
    import deepspeed
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    # Disable a shared-memory all-reduce for CPUs, whose compilation takes half a minute and saves microseconds.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed()
    torch.manual_seed(seed)
    return engine_settings(config, gpu=_device().type == "cuda")


class DeepSpeedModel:
    """A module on this worker's device, whole or (ZeRO 3) partitioned, for inference only."""

    def __init__(self, module: Any, settings: dict[str, Any], optimizer: "torch.optim.Optimizer | None" = None) -> None:
        import deepspeed

        self.module = module
        self.tower = SharedVisionTower(module)
        # The head's output is the largest tensor, so the head runs only on the positions that are needed.
        module.get_output_embeddings().register_forward_pre_hook(self._select_positions)
        self._positions: tuple[torch.Tensor, torch.Tensor]
        self.device = _device()
        self.engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]

    def outputs(self, batch: Batch, rows: "torch.Tensor", columns: "torch.Tensor") -> "torch.Tensor":
        """Return the outputs of the head at K positions of the batch's inputs, [K, width].

        Args:
            batch: Batch, on any device.
            rows: Row of each position, [K].
            columns: Column of each position, [K].
        """
        batch = batch.to(self.device)
        layout = batch.layout
        inputs = batch.inputs if layout is None else model_inputs(batch, layout, self.tower.model)
        self._positions = rows.to(self.device), columns.to(self.device)
        with self.tower.sharing(batch.image_indices):
            logits: torch.Tensor = self.engine(**inputs, use_cache=False).logits
        return logits

    def _select_positions(self, _: Any, hidden: "tuple[torch.Tensor]") -> "tuple[torch.Tensor]":
        """Replace the hidden states [R, L, H] in front of the head by those at the K positions, [K, H]."""
        return (hidden[0][self._positions],)

    def close(self) -> None:
        """Remove DeepSpeed's hooks and free its memory."""
        self.engine.destroy()


class TrainedModel(DeepSpeedModel):
    """A module under training. Every method except `lr` is collective: all workers must call it together."""

    def __init__(self, module: Any, config: DeepSpeedConfig, settings: dict[str, Any]) -> None:
        import torch

        self.config = config
        self._grad_norm = math.nan
        trainable = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        if config.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        super().__init__(module, settings, optimizer)

    def lr(self, step: int, total: int) -> float:
        """Return the learning rate of a step. It depends on the step's number only, so a resumed run needs no state."""
        return self.config.learning_rate * lr_factor(step, total, self.config)

    def update(
        self, batches: Sequence[Batch], loss: "Callable[[int, Batch], torch.Tensor]", *, lr: float
    ) -> StepResult:
        """Take one optimizer step.

        Args:
            batches: This worker's micro-batches, as many as every other worker has.
            loss: Maps the index of a micro-batch and the micro-batch, on the device, to its part of the loss: [], or
                [B] per example. The loss of the step is the sum over the micro-batches of all workers, without fillers.
            lr: Learning rate.

        Raises:
            NonFiniteLoss: On all workers, if the loss is not finite on one. A part of shape [] names all its examples.
            NonFiniteGradient: On all workers, if the norm of the gradient is not finite.
        """
        import torch

        self.engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        losses: list[torch.Tensor] = []
        for number, batch in enumerate(batches):
            part = loss(number, batch.to(self.device))
            losses.append(part.detach().expand(len(batch)))
            value = part.sum() if batch.counts else part.sum() * 0.0
            # DeepSpeed averages gradients over the workers, while the loss is their sum.
            self.engine.backward(value * torch.distributed.get_world_size(), scale_wrt_gas=False)
            total += value.detach()
        torch.distributed.all_reduce(total)
        if not torch.isfinite(total):
            examples = [(b, int(e)) for b, of_batch in enumerate(losses) for e in (~torch.isfinite(of_batch)).nonzero()]
            raise NonFiniteLoss(examples)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() if self.config.zero_stage else self._grad_norm)
        if not math.isfinite(norm):
            # ZeRO skips such a step silently.
            raise NonFiniteGradient
        return StepResult(loss=float(total), grad_norm=norm)

    def _clip(self, optimizer: "torch.optim.Optimizer", *_: object) -> None:
        """Clip gradients with ZeRO 0, where DeepSpeed would not report the norm nor check that it is finite."""
        import torch

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(self._grad_norm):
            raise NonFiniteGradient

    def save(self, folder: Path) -> None:
        """Write this worker's part of a checkpoint: weights, optimizer and random state. One folder per model."""
        import torch
        from deepspeed.accelerator import get_accelerator

        self.engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._partly_frozen())
        states = {"cpu": torch.get_rng_state(), "device": get_accelerator().get_rng_state()}
        torch.save(states, folder / f"random-{torch.distributed.get_rank()}.pt")

    def load(self, folder: Path) -> None:
        """Restore a checkpoint of `save`, with the same number of workers and the same configuration."""
        import torch
        from deepspeed.accelerator import get_accelerator

        self.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._partly_frozen())
        states = torch.load(folder / f"random-{torch.distributed.get_rank()}.pt")
        torch.set_rng_state(states["cpu"])
        get_accelerator().set_rng_state(states["device"])

    def _partly_frozen(self) -> bool:
        return self.config.lora is not None or self.config.freeze_vision


def _device() -> "torch.device":
    import torch
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())
