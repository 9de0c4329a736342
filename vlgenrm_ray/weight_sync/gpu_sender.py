"""The learner's side of a weight transfer between GPUs: its first worker, on vLLM's trainer engine. Experimental.

A raw NCCL call has no timeout and cannot be interrupted. vLLM therefore runs in a thread that may be abandoned, while
the calling thread gathers the weights, a collective operation of all learner workers, and waits with a time limit.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.engines.vllm import missing_fused_layers
from vlgenrm_ray.engines.vllm_requests import error_summary
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.weight_sync.coordinator import GpuBackend, TransferGroup, TransferPhase
from vlgenrm_ray.weight_sync.object_store import PART_BYTES
from vlgenrm_ray.weight_sync.versions import WeightChecksum

if TYPE_CHECKING:
    import torch

_EXTRA_TIMEOUT_S = 15.0
"""Seconds that the learner waits beyond the coordinator's timeout: the coordinator's error names the engine that
hangs."""
_POLL_S = 0.2
_MAX_QUEUED = 2
"""Tensors gathered while others are being sent."""


class CoordinatorClient(Protocol):
    """A blocking client of the `WeightTransferCoordinator`. Every method raises what the coordinator raises."""

    def begin(self) -> TransferGroup:
        """See `WeightTransferCoordinator.begin`."""
        ...

    def run_phase(self, phase: TransferPhase, info: dict[str, Any]) -> None:
        """See `WeightTransferCoordinator.run_phase`."""
        ...

    def commit(self, version: int, checksum: str) -> None:
        """See `WeightTransferCoordinator.commit`."""
        ...

    def cancel(self, reason: str) -> None:
        """See `WeightTransferCoordinator.cancel`. Does not wait."""
        ...


class GpuWeightSender:
    """Sends versions of the weights. The process group is recreated whenever an engine was restarted."""

    def __init__(
        self,
        backend: GpuBackend,
        coordinator: CoordinatorClient,
        tensor_specs: Callable[[], Sequence[TensorSpec]],
        *,
        address: str,
        timeout_s: float,
    ) -> None:
        """Create a sender.

        Args:
            backend: Transport of vLLM.
            coordinator: Client of the coordinator of the rollout engines.
            tensor_specs: Returns the specs of the weights that will be sent, in their order.
            address: IP address of this node, for the engines.
            timeout_s: Seconds for each phase.
        """
        self._backend = backend
        self._coordinator = coordinator
        self._tensor_specs = tensor_specs
        self._address = address
        self._timeout_s = timeout_s
        self._trainer: Any = None
        """Trainer engine of vLLM."""
        self._engines: tuple[str, ...] = ()
        self._bridge: _VllmBridge | None = None
        self._device = _SenderDevice()

    def send(self, weights: "Iterable[tuple[str, torch.Tensor]]", version: int) -> None:
        """Send weights to all engines; returns when they sample with them.

        Args:
            weights: Names and tensors. The iterator may not be exhausted if an error is raised.
            version: Version of the weights.

        Raises:
            TransferBrokenError: An engine was lost.
            WeightSyncError: An engine hangs or refuses the weights.
        """
        try:
            group = self._coordinator.begin()
            if self._bridge is None or group.engines != self._engines:
                self._bridge = self._join(group, version)
            self._bridge.reset(version)
            self._run(TransferPhase.RECEIVE, self._bridge, self._trainer.send_weights, weights)
        except BaseException as error:
            self.leave_group()
            self._coordinator.cancel(f"the transfer of version {version} failed: {error}")
            raise

    def leave_group(self) -> None:
        """Leave the process group. An abandoned thread that hangs in it cannot reach the engines any more."""
        if self._bridge is not None:
            _set_outcome(self._bridge.outcome, error=WeightSyncError("the transfer was cancelled"))
        group = getattr(self._trainer, "model_update_group", None)
        if group is not None:
            group.destroy()
        self._trainer, self._bridge, self._engines = None, None, ()

    def _join(self, group: TransferGroup, version: int) -> "_VllmBridge":
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self.leave_group()
        if self._device.uuid is not None:
            group.check(self._backend, self._device.uuid)
        specs = self._tensor_specs()
        if missing := missing_fused_layers(spec.name for spec in specs):
            raise WeightSyncError(f"weights of a fused layer must be sent together; {missing[0]} is not among them")
        info = _trainer_init_info(self._backend, group, specs, self._address)
        bridge = self._bridge = _VllmBridge(self._coordinator, specs)
        self._engines = group.engines
        bridge.reset(version)
        self._trainer = self._run(
            TransferPhase.JOIN,
            bridge,
            lambda: WeightTransferTrainerFactory.trainer_init(info, client=bridge, source=bridge),
        )
        return bridge

    def _run(
        self,
        phase: TransferPhase,
        bridge: "_VllmBridge",
        work: Callable[[], Any],
        weights: "Iterable[tuple[str, torch.Tensor]]" = (),
    ) -> Any:
        """Run `work` in a thread and feed it `weights`. Return its result, or raise the first error or a timeout."""
        outcome = bridge.outcome

        def run() -> None:
            try:
                with self._device.entered():
                    result = work()
            except Exception as error:
                failure = WeightSyncError(
                    f"weights of version {bridge.version}: {phase} failed: {error_summary(error)}"
                )
                _set_outcome(outcome, error=failure)
            else:
                _set_outcome(outcome, result)

        threading.Thread(target=run, name=f"weights: {phase}", daemon=True).start()
        deadline = time.monotonic() + self._timeout_s + _EXTRA_TIMEOUT_S
        for weight in bridge.checksum.observe(weights):
            if not bridge.put(weight, deadline):
                break
        bridge.put(None, deadline)
        wait([outcome], timeout=max(0.0, deadline - time.monotonic()))
        timeout = WeightSyncError(
            f"weights of version {bridge.version}: the {phase} phase hangs on the learner's side for more than "
            f"{self._timeout_s:g} s (sync.timeout_s), with engines {', '.join(self._engines)}"
        )
        _set_outcome(outcome, error=timeout)
        return outcome.result()


class _VllmBridge:
    """Connects vLLM's trainer engine to this process: its `WeightSource` and its `VLLMWeightSyncClient`."""

    def __init__(self, coordinator: CoordinatorClient, specs: Sequence[TensorSpec]) -> None:
        self._coordinator = coordinator
        self._specs = specs
        self.reset(0)

    def reset(self, version: int) -> None:
        """Prepare for a version, or for the join before it."""
        self.version = version
        self.checksum = WeightChecksum()
        self.outcome: Future[Any] = Future()
        self._queue: queue.Queue[Any] = queue.Queue(_MAX_QUEUED)

    def put(self, weight: "tuple[str, torch.Tensor] | None", deadline: float) -> bool:
        """Queue a weight for vLLM, or None as the end; return False if nothing reads the queue any more."""
        while not self.outcome.done() and time.monotonic() < deadline:
            with suppress(queue.Full):
                self._queue.put(weight, timeout=_POLL_S)
                return True
        return False

    # -- vLLM's WeightSource -----------------------------------------------------------------------------------

    def metadata(self) -> list[Any]:
        import torch
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape) for spec in self._specs]

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        import torch

        queued, outcome = self._queue, self.outcome
        while True:
            try:
                weight = queued.get(timeout=_POLL_S)
            except queue.Empty:
                if outcome.done():
                    raise WeightSyncError("the transfer was cancelled") from None
                continue
            if weight is None:
                return
            name, tensor = weight
            if tensor.is_cuda:
                # Made on another thread's stream: wait for it, and keep the memory until this stream has read it.
                stream = torch.cuda.current_stream()
                stream.wait_stream(torch.cuda.default_stream())
                tensor.record_stream(stream)
            yield name, tensor

    # -- vLLM's VLLMWeightSyncClient ---------------------------------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call(lambda: self._coordinator.run_phase(TransferPhase.JOIN, init_info))

    def start_weight_update(self) -> None:
        self._call(lambda: self._coordinator.run_phase(TransferPhase.START, {}))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._call(lambda: self._coordinator.run_phase(TransferPhase.RECEIVE, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call(lambda: self._coordinator.commit(self.version, self.checksum.hexdigest()))

    def _call(self, call: Callable[[], None]) -> None:
        """Call the coordinator. An error ends the transfer at once: vLLM itself may hang, waiting for those engines."""
        if self.outcome.done():
            raise WeightSyncError("the transfer was cancelled")
        try:
            call()
        except BaseException as error:
            _set_outcome(self.outcome, error=error)
            raise


class _SenderDevice:
    """The learner's GPU with a stream for sending. Does nothing without a GPU."""

    def __init__(self) -> None:
        import torch

        self._index = torch.cuda.current_device() if torch.cuda.is_available() else None
        # One stream for all transfers: the allocator keeps memory apart by stream.
        self._stream = None if self._index is None else torch.cuda.Stream(self._index)  # type: ignore[no-untyped-call]
        self.uuid = None if self._index is None else str(torch.cuda.get_device_properties(self._index).uuid)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Select the device and stream in the calling thread; a new thread starts on the first GPU."""
        import torch

        if self._index is None:
            yield
            return
        with torch.cuda.device(self._index), torch.cuda.stream(self._stream):
            yield


def _trainer_init_info(backend: GpuBackend, group: TransferGroup, specs: Sequence[TensorSpec], address: str) -> Any:
    """Return vLLM's init info of the learner."""
    import torch

    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        # Not packed: both sides would hold two more buffers, and weights of several dtypes would be misaligned.
        return NCCLTrainerInitInfo(
            rank=0,
            master_address=address,
            master_port=get_open_port(),
            world_size=group.world_size,
            packed=False,
        )
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    # Packed: otherwise the shared GPU would hold a second copy of the whole model.
    largest = max((prod(spec.shape) * getattr(torch, spec.dtype).itemsize for spec in specs), default=0)
    return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(PART_BYTES, largest))


def _set_outcome(outcome: "Future[Any]", result: Any = None, *, error: BaseException | None = None) -> None:
    """Set the outcome of a transfer, unless it is set already."""
    with suppress(InvalidStateError):
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)
