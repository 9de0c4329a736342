"""Samples for all workers, weights for all engines: the first worker speaks with the collector, the others take part.

A version of the weights is the number of steps learnt, so a sample's staleness is its step, from 0, less its version.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol

from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.worker_context import WorkerContext

if TYPE_CHECKING:
    import torch

    Weights = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class Line(Protocol):
    """The first worker's line to the collector: `source.Source`."""

    def ask(self, what: str, step: int, version: int) -> None:
        """See `Source.ask`."""
        ...

    def told(self, what: str, step: int, version: int) -> Collected | None:
        """See `Source.told`."""
        ...

    def send(self, weights: "Iterator[tuple[str, torch.Tensor]]", version: int) -> bool:
        """See `Source.send`."""
        ...


class Supply:
    """Where a worker's samples come from and its weights go to. Every method is collective."""

    def __init__(self, context: WorkerContext, line: Line | None, weights: "Weights") -> None:
        """`line`: the first worker's. `weights`: the present ones, which all workers go through together."""
        self._context = context
        self._line = line
        self._weights = weights
        self._sent: int | None = None
        """Version that the engines were last given by these workers."""

    def send(self, version: int) -> None:
        """Give the engines the present weights, unless they have them. Raises WeightSyncError, StageError."""
        while self._sent != version:
            weights = self._weights()
            if self._line is None:
                for _ in weights:
                    continue
            if self._context.broadcast_from_rank0(partial(self._send, weights, version)):
                self._sent = version

    def ask(self, step: int) -> None:
        """Have the engines begin with a step's samples, by the weights they were sent last."""
        if self._line is not None:
            assert self._sent is not None
            self._line.ask("step", step, self._sent)

    def take(self, what: str, step: int) -> Collected:
        """What the collector collects for a `step`, asked for or not, or to `evaluate` after so many steps.

        A collector that lacks the weights is given the present ones, those after `step` steps. Raises what the
        collector raises, StageError where it is lost again and again.
        """
        while True:
            self.send(step if self._sent is None else self._sent)
            found = self._context.broadcast_from_rank0(lambda: self._told(what, step))
            if found is not None:
                return found
            self._sent = None

    def _send(self, weights: "Iterator[tuple[str, torch.Tensor]]", version: int) -> bool:
        assert self._line is not None
        return self._line.send(weights, version)

    def _told(self, what: str, step: int) -> Collected | None:
        assert self._line is not None
        assert self._sent is not None
        return self._line.told(what, step, self._sent)
