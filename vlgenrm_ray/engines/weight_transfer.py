"""A policy's weights straight from the learner's GPU into engines on GPUs: what both sides of vLLM's transfer agree on.

`nccl`: one broadcast from the learner's first worker (rank 0) to every worker of every engine. `ipc`: engines on the
learner's own GPU read its memory. The learner's side is `weight_sender`, the engine's `weight_receiver`.

Checked against the API of vLLM 0.29: its own classes over a communicator of the tests. It has not been run on a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any, Literal

from vlgenrm_ray.errors import WeightSyncError

Backend = Literal["nccl", "ipc"]
_OFFSET = "rank_offset"
"""Of vLLM's init info: the rank in the group that an engine's first worker takes."""


class Phase(StrEnum):
    """What an engine is asked to do, in this order. Nothing else may be asked of it between the first and the last."""

    MUSTER = "muster"
    """Say which GPU each worker has."""
    JOIN = "rendezvous"
    """Leave the group that was, if any, and join the learner's, by vLLM's init info."""
    BEGIN = "start"
    """Make ready for new weights."""
    RECEIVE = "broadcast"
    """Receive them, by vLLM's update info; `ipc` asks it several times."""
    FINISH = "finish"
    """Check them by `checksum` and be of that `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Muster:
    """The engines that take part in a transfer."""

    members: tuple[str, ...]
    """Names of their processes: one that was started again has another."""
    gpus: tuple[tuple[str, ...], ...]
    """Of each engine: the GPU of each of its workers, by UUID."""

    @property
    def world_size(self) -> int:
        """Members of the group: the learner's first worker and every worker of every engine."""
        return 1 + sum(map(len, self.gpus))

    def infos(self, info: Mapping[str, Any]) -> list[dict[str, Any]]:
        """vLLM's init info for each engine: its workers' ranks come after those of the engines before it."""
        if _OFFSET not in info:
            return [dict(info) for _ in self.members]
        before = list(accumulate(map(len, self.gpus), initial=int(info[_OFFSET])))
        return [{**info, _OFFSET: offset} for offset in before[:-1]]

    def check(self, backend: Backend, own: str) -> None:
        """Raise WeightSyncError unless the engines are on GPUs that `backend` can reach from the learner's `own`."""
        for name, gpus in zip(self.members, self.gpus, strict=True):
            if backend == "ipc" and set(gpus) != {own}:
                raise WeightSyncError(
                    f"sync.transfer: ipc needs the engine on the learner's GPU {own}, and {name} is on "
                    f"{', '.join(gpus)}; give them one GPU, or use nccl or object_store"
                )
            if backend == "nccl" and own in gpus:
                raise WeightSyncError(
                    f"sync.transfer: nccl needs a GPU for each, and {name} is on the learner's, {own}; use ipc or "
                    "object_store"
                )


def engine_settings(backend: Backend) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for an engine that gets its weights so."""
    return {
        "weight_transfer_config": {"backend": backend},
        "worker_extension_cls": "vlgenrm_ray.engines.weight_receiver.WorkerTally",
    }
