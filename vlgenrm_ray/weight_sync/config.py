"""Settings of weight sync, and the choice of the transport."""

from typing import Literal

from pydantic import Field

from vlgenrm_ray.settings import Settings
from vlgenrm_ray.weight_sync.coordinator import GpuBackend

SyncBackend = Literal["object_store"] | GpuBackend
"""Transport of new weights."""


class SyncConfig(Settings):
    """The transport of new weights from the learner to the rollout engines."""

    transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """`object_store`: through the nodes' memory, with or without GPUs. `nccl`: broadcast from GPU to GPU. `ipc`: engine
    and learner share one GPU. `auto`: `nccl` or `ipc` if the requested GPUs allow it, else `object_store`. `nccl` and
    `ipc` are experimental."""
    timeout_s: float = Field(default=300.0, gt=0.0)
    """Seconds that all engines together may take to load new weights, once they have finished the samples in progress.
    With `nccl` and `ipc`: seconds for each phase of a transfer."""


def resolve_backend(
    sync: SyncConfig,
    *,
    num_workers: int,
    worker_gpus: float,
    num_engines: int,
    engine_gpus: float,
    tensor_parallel_size: int,
) -> SyncBackend:
    """Resolve the transport for the GPUs that a run asks for.

    Args:
        sync: Settings.
        num_workers: Learner workers.
        worker_gpus: GPUs of each learner worker.
        num_engines: Rollout engines.
        engine_gpus: GPUs of each rollout engine.
        tensor_parallel_size: Workers of each rollout engine.

    Raises:
        ValueError: The GPUs do not allow `sync.transfer`. The message names the remedy.
    """
    if sync.transfer == "object_store":
        return "object_store"
    objections = {
        "nccl": _nccl_objection(worker_gpus, engine_gpus, tensor_parallel_size),
        "ipc": _ipc_objection(num_workers, worker_gpus, num_engines, engine_gpus, tensor_parallel_size),
    }
    if sync.transfer == "auto":
        return "nccl" if not objections["nccl"] else "ipc" if not objections["ipc"] else "object_store"
    if objection := objections[sync.transfer]:
        raise ValueError(f"sync.transfer: {sync.transfer} {objection}; or use object_store")
    return sync.transfer


def _nccl_objection(worker_gpus: float, engine_gpus: float, tensor_parallel_size: int) -> str:
    if worker_gpus != 1:
        return f"needs one GPU per learner worker, got num_gpus: {worker_gpus:g}; use 1"
    if engine_gpus != tensor_parallel_size:
        return (
            f"needs one GPU per worker of an engine, got rollouts.num_gpus: {engine_gpus:g}; use "
            f"{tensor_parallel_size}, rollouts.engine.tensor_parallel_size"
        )
    return ""


def _ipc_objection(
    num_workers: int, worker_gpus: float, num_engines: int, engine_gpus: float, tensor_parallel_size: int
) -> str:
    if not (0 < worker_gpus < 1 and 0 < engine_gpus <= 1 - worker_gpus):
        return (
            "needs one GPU that learner and engine share, got "
            f"num_gpus: {worker_gpus:g} and rollouts.num_gpus: {engine_gpus:g}; use 0.5 for both"
        )
    if (num_workers, num_engines, tensor_parallel_size) != (1, 1, 1):
        return "needs one learner worker and one engine on one GPU; use workers: 1 and rollouts.num_engines: 1, or nccl"
    return ""
