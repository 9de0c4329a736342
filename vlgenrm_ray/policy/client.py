"""The learner's client of the rollout orchestrator: fetches rollouts, sends weights, survives lost processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.errors import StageError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy.orchestrator import NAMESPACE
from vlgenrm_ray.policy.rollouts import DecodingBatch, RolloutBatch
from vlgenrm_ray.policy.worker_context import WorkerContext
from vlgenrm_ray.weight_sync.config import SyncBackend
from vlgenrm_ray.weight_sync.transports import create_sender

if TYPE_CHECKING:
    import torch

BatchKind = Literal["step", "evaluation", "decoding"]
"""Kind of batch: rollouts to train on, or answers to held-out questions, scored or to compare ways of decoding."""
_PAUSE_S = 1.0
"""Seconds before a lost orchestrator is called again; Ray restarts it meanwhile."""


class RolloutClient:
    """Client of the orchestrator on every learner worker. All methods are collective.

    Rank 0 alone calls the orchestrator, and broadcasts the results; the other workers take part in gathering weights.
    The version of the weights is the number of training steps done, so the staleness of a rollout is its step, from 0,
    minus its version.
    """

    def __init__(
        self,
        context: WorkerContext,
        orchestrator: str,
        weights: "Callable[[], Iterator[tuple[str, torch.Tensor]]]",
        tensor_specs: Callable[[], Sequence[TensorSpec]],
        *,
        backend: SyncBackend,
        sync_timeout_s: float,
        retries: int,
    ) -> None:
        """Connect to the orchestrator.

        Args:
            context: This worker among all.
            orchestrator: Name of the orchestrator actor.
            weights: Gathers the current weights one by one, on all workers together.
            tensor_specs: Returns the specs of these weights.
            backend: Transport of the weights.
            sync_timeout_s: Seconds for each phase of a transfer between GPUs.
            retries: Times in a row that the orchestrator or a transfer may be lost.
        """
        self._context = context
        self._weights = weights
        self._retries = retries
        self._num_losses = 0
        self._pending: dict[BatchKind, Any] = {}
        self._sent_version: int | None = None
        """Version that these workers sent last; None if the orchestrator may have lost it."""
        if context.is_rank0:
            import ray

            self._orchestrator: Any = ray.get_actor(orchestrator, namespace=NAMESPACE)
            self._send = create_sender(backend, self._orchestrator, tensor_specs, timeout_s=sync_timeout_s)

    def send_weights(self, version: int) -> None:
        """Send the current weights to the engines, unless they have this version.

        Raises:
            WeightSyncError: An engine refuses them, or does not load them in time.
            StageError: The orchestrator or a transfer was lost more than `retries` times in a row.
        """
        while self._sent_version != version:
            weights = self._weights()
            if not self._context.is_rank0:
                _exhaust(weights)
            if self._context.broadcast_from_rank0(partial(self._try_send, weights, version)):
                self._sent_version = version

    def submit(self, step: int) -> None:
        """Request the rollouts of a training step in advance, sampled with the weights sent last. Does not wait."""
        if self._context.is_rank0:
            assert self._sent_version is not None
            self._request("step", step, self._sent_version)

    def fetch_decoding(self, step: int) -> DecodingBatch:
        """Wait for greedy and sampled answers to the held-out questions. Arguments and errors as of `fetch`."""
        batch: DecodingBatch = self._fetch("decoding", step)
        return batch

    def fetch(self, kind: Literal["step", "evaluation"], step: int) -> RolloutBatch:
        """Wait for a batch of rollouts, and request it first if `submit` has not.

        An orchestrator that was restarted is sent the current weights, and the batch is requested again.

        Args:
            kind: `step` or `evaluation`.
            step: Training step, from 0; for an evaluation the number of steps done.

        Raises:
            StageError: The orchestrator was lost more than `retries` times in a row.
            VlGenRMError: The error that the orchestrator raised, for instance RemoteError for a missing reward.
        """
        batch: RolloutBatch = self._fetch(kind, step)
        return batch

    def _fetch(self, kind: BatchKind, step: int) -> Any:
        while True:
            self.send_weights(step if self._sent_version is None else self._sent_version)
            batch = self._context.broadcast_from_rank0(lambda: self._try_fetch(kind, step))
            if batch is not None:
                return batch
            self._sent_version = None

    # -- rank 0 ------------------------------------------------------------------------------------------------

    def _request(self, kind: BatchKind, step: int, version: int) -> None:
        self._pending[kind] = getattr(self._orchestrator, f"collect_{kind}").remote(step, version)

    def _try_fetch(self, kind: BatchKind, step: int) -> RolloutBatch | DecodingBatch | None:
        """Wait for a batch. Return None if the orchestrator lost its weights and needs them again."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if kind not in self._pending:
            assert self._sent_version is not None
            self._request(kind, step, self._sent_version)
        try:
            batch: RolloutBatch | DecodingBatch = ray.get(self._pending.pop(kind))
        except RayTaskError as error:
            if not isinstance(error.cause, WeightSyncError):
                raise error.cause from error
            self._count_loss("the rollout orchestrator", error.cause)
            return None
        except RayActorError as error:
            # Ray restarts it, with the weights that the run started with.
            self._count_loss("the rollout orchestrator", error)
            return None
        self._num_losses = 0
        return batch

    def _try_send(self, weights: "Iterator[tuple[str, torch.Tensor]]", version: int) -> bool:
        """Send weights. Return False if the transfer broke and must be repeated."""
        from ray.exceptions import RayActorError, RayTaskError

        try:
            self._send(weights, version)
        except TransferBrokenError as error:
            self._count_loss("a transfer of weights", error)
            return False
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            # The next fetch finds that the restarted orchestrator lacks the weights.
            self._count_loss("the rollout orchestrator", error)
        finally:
            # The other workers wait for this one in every gather.
            _exhaust(weights)
        return True

    def _count_loss(self, subject: str, error: Exception) -> None:
        self._num_losses += 1
        if self._num_losses > self._retries:
            raise StageError(
                f"stage 'policy': {subject} was lost {self._num_losses} times in a row: {error}"
            ) from error
        time.sleep(_PAUSE_S)


def _exhaust(weights: Iterator[Any]) -> None:
    for _ in weights:
        continue
