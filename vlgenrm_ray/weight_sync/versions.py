"""Versions and checksums of weights, common to all transports.

Tensors have the names of the exported Hugging Face folder; the engine's own loader fuses and shards them.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.errors import WeightSyncError

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22
"""Words hashed at once: the arithmetic needs about 5 times their memory."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0xBF58476D1CE4E5B9 - (1 << 64)
"""Odd constants of the SplitMix64 generator (Steele et al., OOPSLA 2014), as signed 64-bit integers."""

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightVersion(Generic[Part]):
    """One version of the weights."""

    version: int
    """Number of training steps that produced the weights; 0: the weights that the run started with."""
    checksum: str
    """Checksum of all tensors, by `WeightChecksum`."""
    parts: tuple[Part, ...]
    """The tensors: references to `object_store.WeightPart` in Ray's object store, or the parts themselves."""
    is_stored: bool = True
    """True if `parts` hold the weights. False after a transfer between GPUs: engines cannot load them again."""


class WeightChecksum:
    """A checksum of named tensors: names, dtypes, shapes and bytes, in any order and on any device.

    Integer arithmetic only, so that CPU and GPU agree. It detects accidents, not forgeries.
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def add(self, name: str, tensor: "torch.Tensor") -> None:
        """Add one tensor."""
        description = f"{TensorSpec.of(name, tensor)} {_fold(tensor)}"
        self._digests.append(hashlib.blake2b(description.encode(), digest_size=16).digest())

    def observe(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield the weights unchanged, and add each of them to the checksum."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def hexdigest(self) -> str:
        """Return the checksum of all tensors added so far."""
        return hashlib.blake2b(b"".join(sorted(self._digests)), digest_size=16).hexdigest()


def checksum_error(version: int, actual: str, expected: str, consequence: str) -> WeightSyncError:
    """Build the error for weights whose checksum differs from the one they were sent with.

    Args:
        version: Version of the weights.
        actual: Checksum of what arrived.
        expected: Checksum of what was sent.
        consequence: What the engine has now.
    """
    return WeightSyncError(
        f"weights of version {version} arrived damaged: checksum {actual}, sent with {expected}; {consequence}"
    )


def _fold(tensor: "torch.Tensor") -> int:
    """Reduce the bytes of a tensor to one number: the sum of its words, each mixed with its position, mod 2^64."""
    import torch

    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if padding := -data.numel() % 8:
        data = torch.cat([data, data.new_zeros(padding)])
    elif data.storage_offset() % 8:
        data = data.clone()
    words, total = data.view(torch.int64), 0
    for begin in range(0, words.numel(), _CHUNK):
        chunk = words[begin : begin + _CHUNK]
        positions = torch.arange(begin + 1, begin + 1 + chunk.numel(), device=chunk.device)
        mixed = (chunk ^ (positions * _ODD)) * _MIX
        total += int(((mixed ^ (mixed >> 29)) * _ODD).sum())
    return total % (1 << 64)
