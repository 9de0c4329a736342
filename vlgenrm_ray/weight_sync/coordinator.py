"""Coordination of a weight transfer from the learner's GPU into the rollout engines, phase by phase. Experimental.

From `begin` to `commit` no engine samples. A transfer that fails after its first phase restarts all engines: the
healthy ones may wait in a collective operation for the one that failed, and cannot be interrupted.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeVar

from vlgenrm_ray.errors import EngineLostError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.weight_sync.versions import WeightVersion

_T = TypeVar("_T")

GpuBackend = Literal["nccl", "ipc"]
"""`nccl`: one broadcast from the first learner worker (rank 0) to every worker of every engine. `ipc`: an engine on the
learner's GPU reads its memory."""

_RANK_OFFSET = "rank_offset"
"""Key of vLLM's init info: rank of an engine's first worker in the transfer group."""


class TransferPhase(StrEnum):
    """The phases of a transfer, in order. An engine executes nothing else between the first and the last."""

    RENDEZVOUS = "rendezvous"
    """Report the GPU of each worker."""
    JOIN = "join"
    """Leave the previous process group, if any, and join the learner's, by vLLM's init info."""
    START = "start"
    """Prepare to receive weights."""
    RECEIVE = "receive"
    """Receive weights, by vLLM's update info; repeated by `ipc`."""
    FINISH = "finish"
    """Compare the `checksum`, and adopt the `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferGroup:
    """The engines that take part in a transfer."""

    engines: tuple[str, ...]
    """Names of the engines' processes. A restarted engine has another name."""
    gpus: tuple[tuple[str, ...], ...]
    """For each engine the UUID of the GPU of each of its workers."""

    @property
    def world_size(self) -> int:
        """Size of the process group: the first learner worker and every worker of every engine."""
        return 1 + sum(map(len, self.gpus))

    def init_infos(self, info: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return vLLM's init info for each engine, with the rank at which the engine's workers start."""
        if _RANK_OFFSET not in info:
            return [dict(info) for _ in self.engines]
        offsets = list(accumulate(map(len, self.gpus), initial=int(info[_RANK_OFFSET])))
        return [{**info, _RANK_OFFSET: offset} for offset in offsets[:-1]]

    def check(self, backend: GpuBackend, learner_gpu: str) -> None:
        """Raise WeightSyncError unless `backend` can reach the engines' GPUs from the learner's (a UUID)."""
        for name, gpus in zip(self.engines, self.gpus, strict=True):
            if backend == "ipc" and set(gpus) != {learner_gpu}:
                raise WeightSyncError(
                    f"sync.transfer: ipc needs the engine on the learner's GPU {learner_gpu}, and {name} is on "
                    f"{', '.join(gpus)}; give them one GPU, or use nccl or object_store"
                )
            if backend == "nccl" and learner_gpu in gpus:
                raise WeightSyncError(
                    f"sync.transfer: nccl needs a GPU for each, and {name} is on the learner's, {learner_gpu}; use "
                    "ipc or object_store"
                )


class TransferEngine(Protocol):
    """One rollout engine in a transfer: `engine_pool.RolloutEngine`."""

    name: str

    async def transfer(self, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
        """Execute one phase of a weight transfer. Raises EngineLostError, WeightSyncError."""
        ...


class TransferPool(Protocol):
    """The rollout engines of a run: `engine_pool.RolloutEnginePool`."""

    async def hold(self, *, timeout_s: float) -> tuple[TransferEngine, ...]:
        """See `RolloutEnginePool.hold`."""
        ...

    def commit(self, weights: WeightVersion[Any]) -> None:
        """See `RolloutEnginePool.commit`."""
        ...

    def release(self) -> None:
        """See `RolloutEnginePool.release`."""
        ...

    def restart_all(self, reason: str) -> None:
        """See `RolloutEnginePool.restart_all`."""
        ...

    async def gather(
        self, awaitables: Sequence[Awaitable[_T]], timeout_s: float, subject: str, action: str
    ) -> list[_T]:
        """See `RolloutEnginePool.gather`."""
        ...


class WeightTransferCoordinator:
    """Runs one transfer at a time. A new transfer cancels an unfinished one, whose learner is presumed dead."""

    def __init__(self, pool: TransferPool, *, timeout_s: float) -> None:
        """Create a coordinator.

        Args:
            pool: The rollout engines.
            timeout_s: Seconds that engines may take to stop sampling, and then for each phase.
        """
        self._pool = pool
        self._timeout_s = timeout_s
        self._engines: tuple[TransferEngine, ...] = ()
        self._group = TransferGroup(engines=(), gpus=())
        self._started = False
        """True once a phase after the rendezvous has run: the engines' weights are undefined until the last phase."""
        self._num_transfers = 0

    async def begin(self) -> TransferGroup:
        """Begin a transfer: engines stop sampling and report their GPUs.

        Raises:
            WeightSyncError: An engine still samples after `timeout_s` seconds.
            EngineLostError: An engine does not start.
            TransferBrokenError: An engine was lost, or another learner began a transfer.
        """
        self.cancel("the learner began another transfer")
        self._num_transfers += 1
        transfer = self._num_transfers
        engines = await self._pool.hold(timeout_s=self._timeout_s)
        if transfer != self._num_transfers:
            self._pool.release()
            raise TransferBrokenError("another learner began a transfer while this one waited for the engines")
        self._engines = engines
        names = tuple(engine.name for engine in engines)
        self._group = TransferGroup(engines=names, gpus=((),) * len(names))
        gpus = await self.run_phase(TransferPhase.RENDEZVOUS, {})
        self._group = TransferGroup(engines=names, gpus=tuple(gpus))
        return self._group

    async def run_phase(self, phase: TransferPhase, info: Mapping[str, Any]) -> list[Any]:
        """Execute a phase on all engines.

        Args:
            phase: The phase.
            info: vLLM's info of the phase. For JOIN each engine gets its own ranks.

        Returns:
            The answer of each engine.

        Raises:
            TransferBrokenError: An engine was lost, or no transfer is in progress.
            WeightSyncError: An engine hangs or refuses.
        """
        engines = self._engines
        if not engines:
            raise TransferBrokenError(f"{phase}: no transfer is in progress")
        self._started = self._started or phase is not TransferPhase.RENDEZVOUS
        infos = self._group.init_infos(info) if phase is TransferPhase.JOIN else [info] * len(engines)
        calls = [_transfer(engine, phase, one) for engine, one in zip(engines, infos, strict=True)]
        try:
            return await self._pool.gather(calls, self._timeout_s, "new weights", f"finished the {phase} phase")
        except BaseException as error:
            # Another transfer may have replaced this one, and must not be cancelled.
            if engines is self._engines:
                self.cancel(str(error))
            raise

    async def commit(self, version: int, checksum: str) -> None:
        """Finish a transfer: engines compare the checksum and sample with the new weights. Raises as `run_phase`."""
        await self.run_phase(TransferPhase.FINISH, {"version": version, "checksum": checksum})
        self._engines, self._started = (), False
        self._pool.commit(WeightVersion(version=version, checksum=checksum, parts=(), is_stored=False))

    def cancel(self, reason: str) -> None:
        """Cancel the transfer in progress, if there is one. Engines whose weights are undefined are restarted."""
        if not self._engines:
            return
        started = self._started
        self._engines, self._started = (), False
        if started:
            self._pool.restart_all(reason)
        else:
            self._pool.release()


async def _transfer(engine: TransferEngine, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
    """Execute a phase on one engine, with its name in error messages."""
    try:
        return await engine.transfer(phase, info)
    except EngineLostError as error:
        raise TransferBrokenError(f"{engine.name} was lost in the {phase} phase of new weights: {error}") from error
    except WeightSyncError as error:
        raise WeightSyncError(f"{engine.name}: {error}") from error
