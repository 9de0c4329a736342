"""A vision-language model that learns, on DeepSpeed: ZeRO 0-3, LoRA or full, one worker per process.

The caller owns batches, order and denominators; the learner owns weights, optimizer and collectives. Every method but
`lr` is collective: all workers call it together, or all wait.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig, engine_settings, lr_share
from vlgenrm_ray.engines.vlm_batch import Batch
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
"""Name peft gives the one adapter there is."""

_TAG = "state"


class NonFiniteLoss(ArithmeticError):
    """The loss of a step is NaN or infinite; the weights were not touched."""

    def __init__(self, rows: Sequence[tuple[int, int]]) -> None:
        """`rows`: (batch, row) of this worker's examples at fault; may be empty, the loss is the same for all."""
        super().__init__(rows)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all workers."""

    loss: float
    grad_norm: float
    """Before clipping."""


class Learner:
    """A model under training in this worker's process; torch.distributed is initialised already."""

    def __init__(self, model: Path, config: DeepSpeedConfig, *, seed: int) -> None:
        """Load `model` (a Hugging Face folder). Equal seeds on all workers: adapters begin equal.

        Raises InputError for a folder that cannot be loaded.
        """
        import deepspeed
        import torch
        import transformers
        from deepspeed.accelerator import get_accelerator

        transformers.logging.disable_progress_bar()
        # A shared-memory all-reduce for CPUs, compiled when first used: half a minute to save microseconds.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel("WARNING")
        deepspeed.init_distributed()
        self.config = config
        self.model_folder = model
        self._accelerator = get_accelerator()
        self.device = torch.device(self._accelerator.current_device_name())
        self.world_size: int = torch.distributed.get_world_size()
        self._grad_norm = math.nan
        torch.manual_seed(seed)
        settings = engine_settings(config, gpu=self.device.type == "cuda")
        self.module = self._load(model, settings)
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        if config.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        self.engine: Any = deepspeed.initialize(model=self.module, optimizer=optimizer, config=settings)[0]

    def _load(self, model: Path, settings: dict[str, Any]) -> Any:
        import torch
        from transformers import AutoModelForImageTextToText
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        halved = bool(settings["bf16"]["enabled"])
        # While this object lives, transformers loads a model already shared out (ZeRO 3), never whole on one worker.
        shared_out = HfDeepSpeedConfig(settings) if self.config.zero_stage == 3 else None
        try:
            module: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=torch.bfloat16 if halved else torch.float32, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"model: cannot load {model} ({error}); give a complete Hugging Face folder") from error
        del shared_out
        module.config.use_cache = False
        if self.config.freeze_vision:
            module.model.visual.requires_grad_(False)
        if self.config.gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return self._with_adapters(module, self.config.lora) if self.config.lora else module

    def _with_adapters(self, module: Any, lora: LoraConfig) -> Any:
        import peft

        settings = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
        )
        try:
            return peft.get_peft_model(module, settings, autocast_adapter_dtype=False)
        except ValueError as error:
            raise InputError(f"lora.target_modules: {lora.target_modules!r} fits no module of the model") from error

    # -- learning ----------------------------------------------------------------------------------------------

    def lr(self, step: int, total: int) -> float:
        """Learning rate of a step; a pure function of its number, so nothing about it needs to be resumed."""
        return self.config.learning_rate * lr_share(step, total, self.config)

    def step(self, batches: Sequence[Batch], *, denominator: float, lr: float) -> StepResult:
        """One optimizer step on this worker's micro-batches, as many as every other worker has.

        Loss = sum over all workers of weight x token cross-entropy, divided by `denominator` (equal on all workers).
        Raises NonFiniteLoss on all workers if it is not finite on one.
        """
        import torch

        self.engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        rows: list[torch.Tensor] = []
        for batch in batches:
            losses = self._losses(batch) / denominator
            rows.append(losses.detach())
            loss = losses.sum() if batch.counts else losses.sum() * 0.0
            # DeepSpeed averages gradients over the workers; the loss is a sum over them.
            self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
            total += loss.detach()
        torch.distributed.all_reduce(total)
        if not torch.isfinite(total):
            at = [(b, int(r)) for b, row in enumerate(rows) for r in (~torch.isfinite(row)).nonzero()]
            raise NonFiniteLoss(at)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if self.config.zero_stage else self._grad_norm
        return StepResult(loss=float(total), grad_norm=float(norm))

    def _losses(self, batch: Batch) -> "torch.Tensor":
        """Weighted token cross-entropy of each row, [B]."""
        import torch.nn.functional as F

        # Logits only where some row has a target: the vocabulary is the widest tensor there is.
        weights = batch.weights[:, 1:]
        keep = weights.any(0).nonzero().squeeze(1)
        targets = batch.inputs["input_ids"][:, 1:][:, keep].to(self.device)
        logits = self._logits(batch, keep)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return (losses.view_as(targets) * weights[:, keep].to(self.device)).sum(-1)

    def _logits(self, batch: Batch, positions: "torch.Tensor") -> "torch.Tensor":
        """[B, K, vocabulary] at K positions, the same of every row."""
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        logits: torch.Tensor = self.engine(**inputs, logits_to_keep=positions.to(self.device), use_cache=False).logits
        return logits

    def _clip(self, optimizer: "torch.optim.Optimizer", *_: object) -> None:
        """ZeRO 0 only: DeepSpeed clips there as well, but does not say what the norm was."""
        import torch

        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))

    # -- asking ------------------------------------------------------------------------------------------------

    def word_probabilities(self, batch: Batch, words: Mapping[str, Sequence[int]]) -> list[dict[str, float]]:
        """For each row, the probability that its next token is one of each word's token ids."""
        import torch

        self.engine.eval()
        last = batch.inputs["attention_mask"].sum(-1) - 1
        with torch.no_grad():
            logits = self._logits(batch, torch.arange(int(last.max()) + 1))
        probabilities = logits[torch.arange(len(last)), last.to(self.device)].float().softmax(-1).cpu()
        return [{word: float(row[list(ids)].sum()) for word, ids in words.items()} for row in probabilities]

    # -- keeping -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write this worker's part of weights, optimizer and random state; the parts together are a checkpoint."""
        import torch

        self.engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=self._partly_frozen())
        states = {"cpu": torch.get_rng_state(), "device": self._accelerator.get_rng_state()}
        torch.save(states, folder / f"random-{torch.distributed.get_rank()}.pt")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; the same number of workers and the same configuration are needed."""
        import torch

        self.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=not self._partly_frozen())
        states = torch.load(folder / f"random-{torch.distributed.get_rank()}.pt")
        torch.set_rng_state(states["cpu"])
        self._accelerator.set_rng_state(states["device"])

    def _partly_frozen(self) -> bool:
        return self.config.lora is not None or self.config.freeze_vision
