"""Weights as packed parts, and their checksums."""

import dataclasses
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vlgenrm_ray.engines.vllm import missing_fused_layers
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.weight_sync import object_store
from vlgenrm_ray.weight_sync.object_store import WeightPart
from vlgenrm_ray.weight_sync.versions import WeightChecksum, WeightVersion

if TYPE_CHECKING:
    import torch


def tensors() -> "dict[str, torch.Tensor]":
    """Return tensors of odd sizes, so that none is aligned to a word."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=generator).bfloat16(),
        "b.bias": torch.randn(7, generator=generator),
        "c.scale": torch.tensor(0.5, dtype=torch.float16),
        "d.weight": torch.randn(4, 6, generator=generator).T,
    }


def checksum(named: "dict[str, torch.Tensor]", order: list[str] | None = None) -> str:
    total = WeightChecksum()
    for name in order or named:
        total.add(name, named[name])
    return total.hexdigest()


@pytest.mark.parametrize("part_bytes", [1, 40, 1 << 20])
def test_weights_arrive_as_they_were_sent(part_bytes: int) -> None:
    sent = tensors()
    total = WeightChecksum()
    parts = list(object_store.pack(total.observe(sent.items()), part_bytes))
    assert len(parts) == {1: 4, 40: 3, 1 << 20: 1}[part_bytes]
    arrived = dict(tensor for part in parts for tensor in part.tensors())
    assert list(arrived) == list(sent)
    assert all(arrived[name].dtype == sent[name].dtype and arrived[name].equal(sent[name]) for name in sent)
    object_store.verify(parts, WeightVersion(version=3, checksum=total.hexdigest(), parts=()), current_version=2)


def test_a_checksum_depends_on_everything_but_the_order() -> None:
    import torch

    sent = tensors()
    shuffled = random.Random(0).sample(list(sent), len(sent))
    before = checksum(sent)
    assert checksum(sent, shuffled) == before
    swapped = sent | {"a.weight": sent["a.weight"].flip(0)}
    reshaped = sent | {"a.weight": sent["a.weight"].view(5, 3)}
    retyped = sent | {"a.weight": sent["a.weight"].view(torch.float16)}
    renamed = {("z.weight" if name == "a.weight" else name): tensor for name, tensor in sent.items()}
    fewer = {name: tensor for name, tensor in sent.items() if name != "c.scale"}
    others = [checksum(other) for other in (swapped, reshaped, retyped, renamed, fewer)]
    assert len({before, *others}) == 6


def test_one_flipped_bit_is_detected_and_the_version_that_stays_is_named() -> None:
    total = WeightChecksum()
    (part,) = object_store.pack(total.observe(tensors().items()))
    data = part.data.copy()
    data[11] ^= 1
    damaged = dataclasses.replace(part, data=data)
    weights = WeightVersion(version=5, checksum=total.hexdigest(), parts=())
    with pytest.raises(WeightSyncError, match=r"version 5 arrived damaged.*version 4 stays"):
        object_store.verify([damaged], weights, current_version=4)


def test_an_empty_tensor_is_packed() -> None:
    import torch

    (part,) = object_store.pack([("none", torch.empty(0, 3))])
    ((_, tensor),) = part.tensors()
    assert tuple(tensor.shape) == (0, 3)
    assert isinstance(part, WeightPart)
    assert part.data.dtype == np.uint8


def test_missing_parts_of_fused_layers_are_named() -> None:
    layer = "model.layers.0"
    present = [f"{layer}.self_attn.q_proj.weight", f"{layer}.mlp.up_proj.weight", f"{layer}.mlp.gate_proj.weight"]
    assert missing_fused_layers(present) == [f"{layer}.self_attn.{name}.weight" for name in ("k_proj", "v_proj")]
    assert missing_fused_layers(["lm_head.weight", "norm", f"{layer}.self_attn.o_proj.weight"]) == []
