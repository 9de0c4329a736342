import dataclasses
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.weight_sync import Checksum, Part, Weights
from vlgenrm_ray.errors import WeightSyncError

if TYPE_CHECKING:
    import torch


def tensors() -> "dict[str, torch.Tensor]":
    """Of odd sizes, so that no tensor begins where a word does."""
    import torch

    made = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5, generator=made).bfloat16(),
        "b.bias": torch.randn(7, generator=made),
        "c.scale": torch.tensor(0.5, dtype=torch.float16),
        "d.weight": torch.randn(4, 6, generator=made).T,
    }


def checksum(named: "dict[str, torch.Tensor]", order: list[str] | None = None) -> str:
    total = Checksum()
    for name in order or named:
        total.add(name, named[name])
    return total.hexdigest()


@pytest.mark.parametrize("part_bytes", [1, 40, 1 << 20])
def test_weights_arrive_as_they_were_sent(part_bytes: int) -> None:
    sent = tensors()
    total = Checksum()
    parts = list(weight_sync.pack(total.counting(sent.items()), part_bytes))
    assert len(parts) == {1: 4, 40: 3, 1 << 20: 1}[part_bytes]
    arrived = dict(tensor for part in parts for tensor in part.tensors())
    assert list(arrived) == list(sent)
    assert all(arrived[name].dtype == sent[name].dtype and arrived[name].equal(sent[name]) for name in sent)
    weight_sync.check(parts, Weights(version=3, checksum=total.hexdigest(), parts=()), present=2)


def test_a_checksum_does_not_ask_for_an_order_but_for_everything_else() -> None:
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
    found = [checksum(other) for other in (swapped, reshaped, retyped, renamed, fewer)]
    assert len({before, *found}) == 6


def test_one_bit_is_found_and_the_version_that_stays_is_named() -> None:
    total = Checksum()
    (part,) = weight_sync.pack(total.counting(tensors().items()))
    data = part.data.copy()
    data[11] ^= 1
    damaged = dataclasses.replace(part, data=data)
    weights = Weights(version=5, checksum=total.hexdigest(), parts=())
    with pytest.raises(WeightSyncError, match=r"version 5 arrived damaged.*version 4 stays"):
        weight_sync.check([damaged], weights, present=4)


def test_an_empty_part_of_a_tensor_is_a_tensor() -> None:
    import torch

    (part,) = weight_sync.pack([("none", torch.empty(0, 3))])
    ((_, tensor),) = part.tensors()
    assert tuple(tensor.shape) == (0, 3)
    assert isinstance(part, Part)
    assert part.data.dtype == np.uint8


def test_fused_layers_are_missed_by_name() -> None:
    layer = "model.layers.0"
    given = [f"{layer}.self_attn.q_proj.weight", f"{layer}.mlp.up_proj.weight", f"{layer}.mlp.gate_proj.weight"]
    assert weight_sync.lacking(given) == [f"{layer}.self_attn.{name}.weight" for name in ("k_proj", "v_proj")]
    assert weight_sync.lacking(["lm_head.weight", "norm", f"{layer}.self_attn.o_proj.weight"]) == []
