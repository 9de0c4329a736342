"""A model on DeepSpeed, one worker per process: its forward pass, an optimizer step of any loss, its checkpoints.

The caller owns batches, order, losses and denominators; the model owns weights, optimizer and collectives.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, engine_settings, lr_factor
from vlgenrm_ray.engines.shared_prompts import model_inputs
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.engines.vlm_tower import Tower

if TYPE_CHECKING:
    import torch

_TAG = "state"


class NonFiniteStep(ArithmeticError):
    """What a step would be taken by is NaN or infinite; the weights were not touched."""

    what: str


class NonFiniteLoss(NonFiniteStep):
    """Its loss is."""

    what = "loss"

    def __init__(self, examples: Sequence[tuple[int, int]]) -> None:
        """`examples`: this worker's at fault, (batch, place in it); may be empty, the loss is the same for all."""
        super().__init__(examples)
        self.examples = examples


class NonFiniteGradient(NonFiniteStep):
    """Its gradient is, though its loss is not."""

    what = "gradient"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all workers."""

    loss: float
    grad_norm: float
    """Before clipping."""


def prepare_process(config: DeepSpeedConfig, seed: int) -> dict[str, Any]:
    """Make DeepSpeed ready in a process in which torch.distributed is initialised; return its settings.

    Equal seeds on all workers: what is added to a model begins equal.
    """
    import deepspeed
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    # A shared-memory all-reduce for CPUs, compiled when first used: half a minute to save microseconds.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.init_distributed()
    torch.manual_seed(seed)
    return engine_settings(config, gpu=_device().type == "cuda")


class DeepSpeedModel:
    """A module on this worker's device, whole or (ZeRO 3) in part. As it is, it does not learn."""

    def __init__(self, module: Any, settings: dict[str, Any], optimizer: "torch.optim.Optimizer | None" = None) -> None:
        import deepspeed

        self.module = module
        self.tower = Tower(module)
        # Over a vocabulary the head's is the widest tensor there is, and its product the largest.
        module.get_output_embeddings().register_forward_pre_hook(self._at_places)
        self._places: tuple[torch.Tensor, torch.Tensor]
        self.device = _device()
        self.engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]

    def outputs(self, batch: Batch, rows: "torch.Tensor", columns: "torch.Tensor") -> "torch.Tensor":
        """What the module's head says at K places of the batch's inputs, given by row and column, [K, width]."""
        batch = batch.to(self.device)
        shared = batch.sharing
        inputs = batch.inputs if shared is None else model_inputs(batch, shared, self.tower.model)
        self._places = rows.to(self.device), columns.to(self.device)
        with self.tower.showing(batch.shown):
            logits: torch.Tensor = self.engine(**inputs, use_cache=False).logits
        return logits

    def _at_places(self, _: Any, hidden: "tuple[torch.Tensor]") -> "tuple[torch.Tensor]":
        """Hidden states [R, L, H] on their way to the head: only those asked for, [K, H], go on."""
        return (hidden[0][self._places],)

    def close(self) -> None:
        """Take DeepSpeed's hooks off and free what it holds."""
        self.engine.destroy()


class TrainedModel(DeepSpeedModel):
    """A module that learns. Every method but `lr` is collective: all workers call it together, or all wait."""

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
        """Learning rate of a step; a pure function of its number, so nothing about it needs to be resumed."""
        return self.config.learning_rate * lr_factor(step, total, self.config)

    def update(
        self, batches: Sequence[Batch], loss: "Callable[[int, Batch], torch.Tensor]", *, lr: float
    ) -> StepResult:
        """One optimizer step on this worker's micro-batches, as many as every other worker has.

        `loss` gets a micro-batch's number and the micro-batch on the device, and gives its part of the step's loss, []
        or [B] by example, with gradient. The loss is the sum of all parts of all workers but those of fillers. Raises
        NonFiniteLoss on all workers if it is not finite on one; a part [] then accuses all of its examples.
        Raises NonFiniteGradient, on all workers too, if the gradient's norm is not finite.
        """
        import torch

        self.engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        losses: list[torch.Tensor] = []
        for number, batch in enumerate(batches):
            part = loss(number, batch.to(self.device))
            losses.append(part.detach().expand(len(batch)))
            value = part.sum() if batch.counts else part.sum() * 0.0
            # DeepSpeed averages gradients over the workers; the loss is a sum over them.
            self.engine.backward(value * torch.distributed.get_world_size(), scale_wrt_gas=False)
            total += value.detach()
        torch.distributed.all_reduce(total)
        if not torch.isfinite(total):
            at = [(b, int(e)) for b, of_batch in enumerate(losses) for e in (~torch.isfinite(of_batch)).nonzero()]
            raise NonFiniteLoss(at)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() if self.config.zero_stage else self._grad_norm)
        if not math.isfinite(norm):
            # Such a step ZeRO leaves out by itself, and says nothing.
            raise NonFiniteGradient
        return StepResult(loss=float(total), grad_norm=norm)

    def _clip(self, optimizer: "torch.optim.Optimizer", *_: object) -> None:
        """ZeRO 0 only: DeepSpeed clips there as well, but does not say what the norm was, and learns from any."""
        import torch

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not math.isfinite(self._grad_norm):
            raise NonFiniteGradient

    def save(self, folder: Path) -> None:
        """Write this worker's part of weights, optimizer and random state; the parts together are a checkpoint.

        A folder holds one model's.
        """
        import torch
        from deepspeed.accelerator import get_accelerator

        self.engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._partly_frozen())
        states = {"cpu": torch.get_rng_state(), "device": get_accelerator().get_rng_state()}
        torch.save(states, folder / f"random-{torch.distributed.get_rank()}.pt")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; the same number of workers and the same configuration are needed."""
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
