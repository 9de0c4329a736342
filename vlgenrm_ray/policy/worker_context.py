"""Rank of a training worker, and broadcasts from rank 0."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from vlgenrm_ray.errors import VlGenRMError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Rank and world size of one training worker. Rank 0 alone calls the rollout orchestrator and writes files."""

    rank: int
    world_size: int

    @classmethod
    def current(cls) -> Self:
        """Return the context of this process, a Ray Train worker."""
        import ray.train

        context = ray.train.get_context()
        return cls(rank=context.get_world_rank(), world_size=context.get_world_size())

    @property
    def is_rank0(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    def broadcast_from_rank0(self, compute: Callable[[], _T]) -> _T:
        """Call `compute` on rank 0 and return its result on all ranks. Collective.

        Raises:
            VlGenRMError: `compute` raised it on rank 0; it is raised again on all ranks.
        """
        import torch.distributed as dist

        result_and_error: list[Any] = [None, None]
        if self.is_rank0:
            try:
                result_and_error[0] = compute()
            except VlGenRMError as error:
                result_and_error[1] = error
        dist.broadcast_object_list(result_and_error, src=0)
        if result_and_error[1] is not None:
            raise result_and_error[1]
        result: _T = result_and_error[0]
        return result
