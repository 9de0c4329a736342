"""The learner's end of each transport, on Ray."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.weight_sync import object_store
from vlgenrm_ray.weight_sync.config import SyncBackend
from vlgenrm_ray.weight_sync.coordinator import TransferGroup, TransferPhase
from vlgenrm_ray.weight_sync.gpu_sender import GpuWeightSender

if TYPE_CHECKING:
    import torch

    SendWeights = Callable[[Iterator[tuple[str, torch.Tensor]], int], None]


def create_sender(
    backend: SyncBackend,
    orchestrator: Any,
    tensor_specs: Callable[[], Sequence[TensorSpec]],
    *,
    timeout_s: float,
) -> "SendWeights":
    """Create the function by which the first learner worker sends weights.

    Args:
        backend: Transport.
        orchestrator: Handle of the `RolloutOrchestrator` actor.
        tensor_specs: Returns the specs of the weights, in their order. Used between GPUs only.
        timeout_s: Seconds for each phase of a transfer between GPUs.

    Returns:
        A function of weights and version that returns when all engines sample with them. It raises WeightSyncError, and
        between GPUs TransferBrokenError for a transfer that can be repeated; a lost orchestrator raises Ray's errors.
    """
    if backend == "object_store":
        return partial(object_store.send, orchestrator)

    import ray.util

    sender = GpuWeightSender(
        backend,
        RayCoordinatorClient(orchestrator),
        tensor_specs,
        address=ray.util.get_node_ip_address(),
        timeout_s=timeout_s,
    )
    return sender.send


class RayCoordinatorClient:
    """A `gpu_sender.CoordinatorClient` of the coordinator in the `RolloutOrchestrator` actor."""

    def __init__(self, orchestrator: Any) -> None:
        self._orchestrator = orchestrator

    def begin(self) -> TransferGroup:
        """See `WeightTransferCoordinator.begin`."""
        group: TransferGroup = self._get(self._orchestrator.begin_transfer.remote())
        return group

    def run_phase(self, phase: TransferPhase, info: dict[str, Any]) -> None:
        """See `WeightTransferCoordinator.run_phase`."""
        self._get(self._orchestrator.run_transfer_phase.remote(phase, info))

    def commit(self, version: int, checksum: str) -> None:
        """See `WeightTransferCoordinator.commit`."""
        self._get(self._orchestrator.commit_transfer.remote(version, checksum))

    def cancel(self, reason: str) -> None:
        """See `WeightTransferCoordinator.cancel`."""
        self._orchestrator.cancel_transfer.remote(reason)

    def _get(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
