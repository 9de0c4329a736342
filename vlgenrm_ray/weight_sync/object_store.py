"""Weights as packed parts for Ray's object store, the transport that works on every cluster.

Parts are plain bytes of moderate size, which processes of one node read without a copy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.weight_sync.versions import WeightChecksum, WeightVersion, checksum_error

if TYPE_CHECKING:
    import torch

PART_BYTES = 256 << 20
"""Size of a part in bytes, unless one tensor alone is larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPart:
    """Some tensors, concatenated."""

    specs: tuple[TensorSpec, ...]
    data: npt.NDArray[np.uint8]
    """Bytes of the tensors, [sum of their sizes]."""

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield the name and a copy of each tensor."""
        import torch

        end = 0
        for spec in self.specs:
            dtype: torch.dtype = getattr(torch, spec.dtype)
            begin, end = end, end + prod(spec.shape) * dtype.itemsize
            # A copy: a slice may be misaligned for its dtype, and Ray's shared memory is read-only.
            tensor = torch.empty(spec.shape, dtype=dtype)
            tensor.view(-1).view(torch.uint8).numpy()[:] = self.data[begin:end]
            yield spec.name, tensor


def pack(weights: "Iterable[tuple[str, torch.Tensor]]", part_bytes: int = PART_BYTES) -> Iterator[WeightPart]:
    """Pack named tensors, on any device, into parts of at most `part_bytes`; a larger tensor is a part of its own."""
    import torch

    specs: list[TensorSpec] = []
    chunks: list[npt.NDArray[np.uint8]] = []
    size = 0
    for name, tensor in weights:
        chunk = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        if chunks and size + chunk.nbytes > part_bytes:
            yield WeightPart(specs=tuple(specs), data=np.concatenate(chunks))
            specs, chunks, size = [], [], 0
        specs.append(TensorSpec.of(name, tensor))
        chunks.append(chunk)
        size += chunk.nbytes
    if chunks:
        yield WeightPart(specs=tuple(specs), data=np.concatenate(chunks))


def verify(parts: Iterable[WeightPart], expected: WeightVersion[Any], current_version: int) -> None:
    """Check the parts against the checksum they were sent with.

    Args:
        parts: Parts that arrived.
        expected: Version that was sent.
        current_version: Version that the engine keeps if the check fails.

    Raises:
        WeightSyncError: The checksums differ.
    """
    checksum = WeightChecksum()
    for part in parts:
        for name, tensor in part.tensors():
            checksum.add(name, tensor)
    if checksum.hexdigest() != expected.checksum:
        raise checksum_error(
            expected.version, checksum.hexdigest(), expected.checksum, f"version {current_version} stays"
        )


def send(orchestrator: Any, weights: "Iterable[tuple[str, torch.Tensor]]", version: int) -> None:
    """Send weights to all rollout engines; returns when they have loaded them.

    Args:
        orchestrator: Handle of the `RolloutOrchestrator` actor. It owns the stored parts, so that engines started
            later can load them, even after a restart of the learner.
        weights: Names and tensors.
        version: Version of the weights.

    Raises:
        ray.exceptions.RayTaskError: Caused by WeightSyncError, if an engine does not load them in time.
        ray.exceptions.RayActorError: The orchestrator died.
    """
    import ray

    checksum = WeightChecksum()
    # Each reference comes in a list, or Ray would resolve it.
    parts = [ray.get(orchestrator.store_part.remote(part)) for part in pack(checksum.observe(weights))]
    sent: WeightVersion[Any] = WeightVersion(
        version=version, checksum=checksum.hexdigest(), parts=tuple(reference for (reference,) in parts)
    )
    ray.get(orchestrator.load_weights.remote(sent))
