"""Settings of how new weights come to the rollout engines, and by which way they go on given GPUs."""

from typing import Literal

from pydantic import Field

from vlgenrm_ray.engines.weight_transfer import Backend
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.settings import Settings

Way = Literal["object_store"] | Backend


class SyncConfig(Settings):
    """How new weights come to the rollout engines."""

    transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """`nccl`: broadcast from GPU to GPU; `ipc`: engine and learner share one GPU; `object_store`: through the memory of
    the nodes, with GPUs or without. `auto`: the first of these that the GPUs asked for allow."""
    timeout_s: float = Field(default=300.0, gt=0.0)
    """Longest that all engines together may take for new weights, what they are sampling included; by `nccl` and `ipc`,
    for each phase of a transfer."""


def way(sync: SyncConfig, rollouts: RolloutsConfig, *, workers: int, num_gpus: float) -> Way:
    """By which way weights go from learning `workers` with so many GPUs each.

    Raises ValueError for one that the GPUs do not allow; it says what to change.
    """
    if sync.transfer == "object_store":
        return "object_store"
    refusals = {
        "nccl": _without_own_gpus(rollouts, num_gpus),
        "ipc": _without_common_gpu(rollouts, workers, num_gpus),
    }
    if sync.transfer == "auto":
        return "nccl" if not refusals["nccl"] else "ipc" if not refusals["ipc"] else "object_store"
    if refusal := refusals[sync.transfer]:
        raise ValueError(f"sync.transfer: {sync.transfer} {refusal}; or use object_store")
    return sync.transfer


def _without_own_gpus(rollouts: RolloutsConfig, num_gpus: float) -> str:
    if num_gpus != 1:
        return f"needs a GPU for each learning worker, got num_gpus: {num_gpus:g}; use 1"
    wanted = rollouts.engine.tensor_parallel_size
    if rollouts.num_gpus != wanted:
        return (
            f"needs a GPU for each of an engine's workers, got rollouts.num_gpus: {rollouts.num_gpus:g}; use {wanted}, "
            "rollouts.engine.tensor_parallel_size"
        )
    return ""


def _without_common_gpu(rollouts: RolloutsConfig, workers: int, num_gpus: float) -> str:
    if not (0 < num_gpus < 1 and 0 < rollouts.num_gpus <= 1 - num_gpus):
        return (
            "needs one GPU that learner and engine share, got "
            f"num_gpus: {num_gpus:g} and rollouts.num_gpus: {rollouts.num_gpus:g}; use 0.5 for both"
        )
    if (workers, rollouts.actors, rollouts.engine.tensor_parallel_size) != (1, 1, 1):
        return "needs one learning worker and one engine on one GPU; use workers: 1 and rollouts.actors: 1, or nccl"
    return ""
