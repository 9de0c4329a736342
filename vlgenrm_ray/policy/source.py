"""The first worker's line to the collector: asks ahead, notices when the collector has lost its weights. On Ray."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.weight_sender import WeightSender
from vlgenrm_ray.errors import StageError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy import collector
from vlgenrm_ray.policy.collecting import Collected

if TYPE_CHECKING:
    import torch

_PAUSE_S = 1.0


class Source:
    """Where a step's samples come from."""

    def __init__(self, name: str, *, retries: int, sender: "Callable[[Any], WeightSender] | None" = None) -> None:
        """`retries`: times in a row that a collector, or a transfer of weights, may be lost before it is an error.
        `sender`: what sends weights straight into the collector's engines; None: they go through the object store.
        """
        import ray

        self.collector: Any = ray.get_actor(name, namespace=collector.NAMESPACE)
        self._sender = sender(self.collector) if sender else None
        self._asked: dict[str, Any] = {}
        self._retries = retries
        self._losses = 0

    def ask(self, what: str, step: int, version: int) -> None:
        """Have the collector begin: `what` is `step` or `evaluate`."""
        self._asked[what] = getattr(self.collector, what).remote(step, version)

    def told(self, what: str, step: int, version: int) -> Collected | None:
        """What was asked for, or is now; None where the collector must be given the present weights first.

        Raises what the collector raised; StageError where it is lost again and again.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if what not in self._asked:
            self.ask(what, step, version)
        try:
            found: Collected = ray.get(self._asked.pop(what))
        except RayTaskError as error:
            if not isinstance(error.cause, WeightSyncError):
                raise error.cause from error
            self._note_loss(error.cause)
            return None
        except RayActorError as error:
            # Ray starts it again; it then has the weights that the run began with.
            self._note_loss(error)
            return None
        self._losses = 0
        return found

    def send(self, weights: "Iterator[tuple[str, torch.Tensor]]", version: int) -> bool:
        """Give the engines new weights; all of the iterator is gone through. False where they must be sent once more.

        Raises WeightSyncError, StageError.
        """
        from ray.exceptions import RayActorError, RayTaskError

        try:
            if self._sender is None:
                collector.send(self.collector, weights, version)
            else:
                self._sender.send(weights, version)
        except TransferBrokenError as error:
            self._note_loss(error, "a transfer of weights")
            return False
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            # A new one is told so when it is asked next: it then says that it lacks them.
            self._note_loss(error)
        finally:
            # The other workers take part in gathering each of them.
            for _ in weights:
                continue
        return True

    def _note_loss(self, error: Exception, what: str = "the collector") -> None:
        self._losses += 1
        if self._losses > self._retries:
            raise StageError(f"stage 'policy': {what} was lost {self._losses} times in a row: {error}") from error
        time.sleep(_PAUSE_S)
