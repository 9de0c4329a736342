"""The learner's side of `weight_transfer`: its first worker, over vLLM's own trainer engine.

A raw NCCL call has no timeout and cannot be interrupted, so vLLM's side runs in a thread that may be left behind; the
calling thread gathers the weights, which all workers do together, and never waits longer than it said.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.vllm_requests import summary
from vlgenrm_ray.engines.weight_sync import PART_BYTES, Checksum, Entry
from vlgenrm_ray.engines.weight_transfer import Backend, Muster, Phase
from vlgenrm_ray.errors import WeightSyncError

if TYPE_CHECKING:
    import torch

_GRACE_S = 15.0
"""More patience than the engines' side has, which can say which engine hangs."""
_LOOK_S = 0.2
_AHEAD = 2
"""Weights gathered while others are on their way."""


class Engines(Protocol):
    """The engines as one, held while they are sent to. Raises what `policy.relay.Relay` raises."""

    def hold(self) -> Muster:
        """Have them sample nothing until `settle` or `let_go`."""
        ...

    def phase(self, phase: Phase, info: dict[str, Any]) -> None:
        """Have all of them do a phase."""
        ...

    def settle(self, version: int, checksum: str) -> None:
        """Have them finish, and sample with what they got."""
        ...

    def let_go(self, why: str) -> None:
        """Give the transfer up, without waiting."""
        ...


class WeightSender:
    """Sends one version of the weights after another; the group is made anew when an engine's process is another."""

    def __init__(
        self,
        backend: Backend,
        engines: Engines,
        outline: Callable[[], Sequence[Entry]],
        *,
        address: str,
        timeout_s: float,
    ) -> None:
        """`outline`: of the weights that will be sent. `address`: of this node, for the others. `timeout_s`: of each
        phase.
        """
        self._backend = backend
        self._engines = engines
        self._outline = outline
        self._address = address
        self._timeout_s = timeout_s
        self._vllm: Any = None
        self._members: tuple[str, ...] = ()
        self._passage: _Passage | None = None
        self._device = _Device()

    def send(self, weights: "Iterable[tuple[str, torch.Tensor]]", version: int) -> None:
        """Give all engines new weights; returns when they sample with them.

        Raises TransferBrokenError where an engine was lost, WeightSyncError where one hangs or does not take them.
        `weights` may then not be at its end.
        """
        try:
            muster = self._engines.hold()
            if self._passage is None or muster.members != self._members:
                self._passage = self._join(muster, version)
            self._passage.begin(version)
            self._watched(Phase.RECEIVE, self._passage, self._vllm.send_weights, weights)
        except BaseException as error:
            self.leave()
            self._engines.let_go(f"the transfer of version {version} failed: {error}")
            raise

    def leave(self) -> None:
        """Leave the group, whatever hangs in it; what is left behind will speak with no engine any more."""
        if self._passage is not None:
            _end(self._passage.ended, error=WeightSyncError("the transfer was given up"))
        group = getattr(self._vllm, "model_update_group", None)
        if group is not None:
            group.destroy()
        self._vllm, self._passage, self._members = None, None, ()

    def _join(self, muster: Muster, version: int) -> "_Passage":
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self.leave()
        if self._device.uuid is not None:
            muster.check(self._backend, self._device.uuid)
        entries = self._outline()
        if lacked := weight_sync.lacking(one.name for one in entries):
            raise WeightSyncError(f"weights of a fused layer come together; {lacked[0]} is not among those sent")
        info = _init_info(self._backend, muster, entries, self._address)
        passage = self._passage = _Passage(self._engines, entries)
        self._members = muster.members
        passage.begin(version)
        self._vllm = self._watched(
            Phase.JOIN, passage, lambda: WeightTransferTrainerFactory.trainer_init(info, client=passage, source=passage)
        )
        return passage

    def _watched(
        self,
        phase: Phase,
        passage: "_Passage",
        work: Callable[[], Any],
        weights: "Iterable[tuple[str, torch.Tensor]]" = (),
    ) -> Any:
        """What `work` gives, done in a thread, while `weights` are handed to it. Raises what fails first, or hangs."""
        ended = passage.ended

        def run() -> None:
            try:
                with self._device.entered():
                    found = work()
            except Exception as error:
                failed = WeightSyncError(f"weights of version {passage.version}: {phase} failed: {summary(error)}")
                _end(ended, error=failed)
            else:
                _end(ended, found)

        threading.Thread(target=run, name=f"weights: {phase}", daemon=True).start()
        until = time.monotonic() + self._timeout_s + _GRACE_S
        for one in passage.checksum.counting(weights):
            if not passage.hand_over(one, until):
                break
        passage.hand_over(None, until)
        wait([ended], timeout=max(0.0, until - time.monotonic()))
        hanging = WeightSyncError(
            f"weights of version {passage.version}: the {phase} hangs on the learner's side, {self._timeout_s:g} s "
            f"(sync.timeout_s) are over; it was with {', '.join(self._members)}"
        )
        _end(ended, error=hanging)
        return ended.result()


class _Passage:
    """Between this process and vLLM's trainer engine: its `WeightSource`, and its `VLLMWeightSyncClient`."""

    def __init__(self, engines: Engines, entries: Sequence[Entry]) -> None:
        self._engines = engines
        self._entries = entries
        self.begin(0)

    def begin(self, version: int) -> None:
        """Make ready for a version, or for the rendezvous before it."""
        self.version = version
        self.checksum = Checksum()
        self.ended: Future[Any] = Future()
        self._waiting: queue.Queue[Any] = queue.Queue(_AHEAD)

    def hand_over(self, one: "tuple[str, torch.Tensor] | None", until: float) -> bool:
        """Give vLLM a weight, or with None the end of them; False where nobody takes it any more."""
        while not self.ended.done() and time.monotonic() < until:
            with suppress(queue.Full):
                self._waiting.put(one, timeout=_LOOK_S)
                return True
        return False

    # -- vLLM's WeightSource -----------------------------------------------------------------------------------

    def metadata(self) -> list[Any]:
        import torch
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(one.name, getattr(torch, one.dtype), one.shape) for one in self._entries]

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
        import torch

        waiting, ended = self._waiting, self.ended
        while True:
            try:
                one = waiting.get(timeout=_LOOK_S)
            except queue.Empty:
                if ended.done():
                    raise WeightSyncError("the transfer was given up") from None
                continue
            if one is None:
                return
            name, tensor = one
            if tensor.is_cuda:
                # It was made on another thread's stream, and its memory may not be another's before this one is done.
                here = torch.cuda.current_stream()
                here.wait_stream(torch.cuda.default_stream())
                tensor.record_stream(here)
            yield name, tensor

    # -- vLLM's VLLMWeightSyncClient ---------------------------------------------------------------------------

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask(lambda: self._engines.phase(Phase.JOIN, init_info))

    def start_weight_update(self) -> None:
        self._ask(lambda: self._engines.phase(Phase.BEGIN, {}))

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._ask(lambda: self._engines.phase(Phase.RECEIVE, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._ask(lambda: self._engines.settle(self.version, self.checksum.hexdigest()))

    def _ask(self, ask: Callable[[], None]) -> None:
        """What the engines say is told at once: vLLM's side of the call may hang for lack of just these engines."""
        if self.ended.done():
            raise WeightSyncError("the transfer was given up")
        try:
            ask()
        except BaseException as error:
            _end(self.ended, error=error)
            raise


class _Device:
    """The learner's GPU, and a stream of it for what leaves; nothing where there is none."""

    def __init__(self) -> None:
        import torch

        self._index = torch.cuda.current_device() if torch.cuda.is_available() else None
        # One for all transfers: what is allocated on a stream is kept for that stream.
        self._stream = None if self._index is None else torch.cuda.Stream(self._index)  # type: ignore[no-untyped-call]
        self.uuid = None if self._index is None else str(torch.cuda.get_device_properties(self._index).uuid)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Of the calling thread: a new thread is on the first GPU."""
        import torch

        if self._index is None:
            yield
            return
        with torch.cuda.device(self._index), torch.cuda.stream(self._stream):
            yield


def _init_info(backend: Backend, muster: Muster, entries: Sequence[Entry], address: str) -> Any:
    """vLLM's, of the learner."""
    import torch

    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        # Tensor by tensor: packed, both sides hold two more buffers, and weights of several precisions do not align.
        return NCCLTrainerInitInfo(
            rank=0,
            master_address=address,
            master_port=get_open_port(),
            world_size=muster.world_size,
            packed=False,
        )
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    # Packed: else a second copy of the whole model lies on the GPU that both share.
    largest = max((prod(one.shape) * getattr(torch, one.dtype).itemsize for one in entries), default=0)
    return IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(PART_BYTES, largest))


def _end(ended: "Future[Any]", found: Any = None, *, error: BaseException | None = None) -> None:
    """Say how it ended, unless that was said already."""
    with suppress(InvalidStateError):
        if error is None:
            ended.set_result(found)
        else:
            ended.set_exception(error)
