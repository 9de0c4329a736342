"""A training's workers among themselves: who one is, and what the first of them gives all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from vlgenrm_ray.errors import VlGenRMError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """One worker's place among all."""

    rank: int
    number: int

    @classmethod
    def here(cls) -> Self:
        """Of the worker of Ray Train that this process is."""
        import ray.train

        context = ray.train.get_context()
        return cls(rank=context.get_world_rank(), number=context.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the worker that alone speaks with the collector and writes for others."""
        return self.rank == 0

    def from_first(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives the first worker, on all of them; an error of ours that it raises there, all raise."""
        import torch.distributed as dist

        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = ask()
            except VlGenRMError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        found: _T = told[0]
        return found
