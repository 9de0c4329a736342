"""A policy's weights on their way from the trainer to engines that run: packed, counted by version, checked at arrival.

The path that works everywhere: parts of moderate size, plain bytes that Ray's object store hands out without a copy.
Names are those of the exported Hugging Face folder; the engine's own loader fuses and shards them. Between GPUs there
is a shorter one, `weight_transfer`, with the same versions and checksums.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.errors import WeightSyncError

if TYPE_CHECKING:
    import torch

PART_BYTES = 256 << 20
_CHUNK = 1 << 22
"""Words hashed at once: the arithmetic needs some 5 times their memory."""
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0xBF58476D1CE4E5B9 - (1 << 64)
_FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Layers of the models that vLLM holds as one. Of a part of one it would make a layer with random rest."""

Ref = TypeVar("Ref")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a part, or of a transfer."""

    name: str
    dtype: str
    """As torch names it, without `torch.`: `bfloat16`."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some tensors, one behind the other."""

    entries: tuple[Entry, ...]
    data: npt.NDArray[np.uint8]
    """Their bytes, [sum of sizes]."""

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """The tensors by name."""
        import torch

        end = 0
        for entry in self.entries:
            dtype: torch.dtype = getattr(torch, entry.dtype)
            begin, end = end, end + prod(entry.shape) * dtype.itemsize
            # A copy: a slice may begin where words must not, and Ray's memory may not be written.
            tensor = torch.empty(entry.shape, dtype=dtype)
            tensor.view(-1).view(torch.uint8).numpy()[:] = self.data[begin:end]
            yield entry.name, tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights(Generic[Ref]):
    """A version of the weights; the parts are references that the receiver can resolve, or the parts themselves."""

    version: int
    """Optimizer steps that made them; 0 are those the run began with."""
    checksum: str
    parts: tuple[Ref, ...]
    kept: bool = True
    """False: they went straight into the engines, and cannot be had again."""


def entry(name: str, tensor: "torch.Tensor") -> Entry:
    """What is said of a tensor beside its bytes."""
    return Entry(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))


class Checksum:
    """Of named tensors, in whatever order they come and on whatever device they lie: names, dtypes, shapes and bytes.

    Integers only, so that a CPU and a GPU count the same. It finds accidents, not forgeries.
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []

    def add(self, name: str, tensor: "torch.Tensor") -> None:
        """Count one tensor."""
        told = f"{entry(name, tensor)} {_folded(tensor)}"
        self._digests.append(hashlib.blake2b(told.encode(), digest_size=16).digest())

    def counting(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> "Iterator[tuple[str, torch.Tensor]]":
        """The same weights, counted as they pass."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def hexdigest(self) -> str:
        """The sum of all counted so far."""
        return hashlib.blake2b(b"".join(sorted(self._digests)), digest_size=16).hexdigest()


def _folded(tensor: "torch.Tensor") -> int:
    """A tensor's bytes as one number: each word mixed with its position, then added up, modulo 2^64."""
    import torch

    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if extra := -data.numel() % 8:
        data = torch.cat([data, data.new_zeros(extra)])
    elif data.storage_offset() % 8:
        data = data.clone()
    words, total = data.view(torch.int64), 0
    for begin in range(0, words.numel(), _CHUNK):
        part = words[begin : begin + _CHUNK]
        place = torch.arange(begin + 1, begin + 1 + part.numel(), device=part.device)
        mixed = (part ^ (place * _ODD)) * _MIX
        total += int(((mixed ^ (mixed >> 29)) * _ODD).sum())
    return total % (1 << 64)


def pack(weights: "Iterable[tuple[str, torch.Tensor]]", part_bytes: int = PART_BYTES) -> Iterator[Part]:
    """Named tensors, on any device, as parts of at most `part_bytes`, a larger tensor as a part of its own."""
    import torch

    entries: list[Entry] = []
    pieces: list[npt.NDArray[np.uint8]] = []
    size = 0
    for name, tensor in weights:
        piece = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        if pieces and size + piece.nbytes > part_bytes:
            yield Part(entries=tuple(entries), data=np.concatenate(pieces))
            entries, pieces, size = [], [], 0
        entries.append(entry(name, tensor))
        pieces.append(piece)
        size += piece.nbytes
    if pieces:
        yield Part(entries=tuple(entries), data=np.concatenate(pieces))


def lacking(names: Iterable[str]) -> list[str]:
    """Of layers that engines fuse from several: the names that must come with `names`, and are not among them."""
    given = set(names)
    wanted = set()
    for name in given:
        path, _, kind = name.rpartition(".")
        before, _, layer = path.rpartition(".")
        wanted |= {f"{before}.{sibling}.{kind}" for siblings in _FUSED if layer in siblings for sibling in siblings}
    return sorted(wanted - given)


def check(parts: Iterable[Part], expected: Weights[Ref], present: int) -> None:
    """Raise WeightSyncError unless the parts hold what was sent; `present` is the version that then stays."""
    checksum = Checksum()
    for part in parts:
        for name, tensor in part.tensors():
            checksum.add(name, tensor)
    if checksum.hexdigest() != expected.checksum:
        raise damaged(expected.version, checksum.hexdigest(), expected.checksum, f"version {present} stays")


def damaged(version: int, arrived: str, sent: str, left: str) -> WeightSyncError:
    """The error of weights whose checksum is another than the one they were sent with; `left`: what is there now."""
    return WeightSyncError(
        f"weights of version {version} arrived damaged: checksum {arrived}, sent with {sent}; {left}"
    )
