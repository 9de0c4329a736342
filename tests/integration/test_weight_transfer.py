"""Both sides of a transfer on vLLM's own classes: its `LLM`, its workers, its transfer engines and its trainer engine.

Only what needs a GPU is straw: the communicator, the device, and the layers that the weights would be loaded into.
"""

import queue
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vlgenrm_ray.engines import weight_receiver, weight_sender, weight_sync
from vlgenrm_ray.engines.weight_receiver import WorkerTally
from vlgenrm_ray.engines.weight_sender import WeightSender
from vlgenrm_ray.engines.weight_sync import Entry
from vlgenrm_ray.engines.weight_transfer import Muster, Phase, engine_settings
from vlgenrm_ray.errors import WeightSyncError

if TYPE_CHECKING:
    import torch


class Wire:
    """One communicator: what rank 0 sends, every other rank gets, in order."""

    def __init__(self, world_size: int) -> None:
        self.queues: dict[int, queue.Queue[Any]] = {rank: queue.Queue() for rank in range(1, world_size)}
        self.ranks: list[int] = []
        self.damage = False


class Member:
    """A rank's end of it, in the place of a `PyNcclCommunicator`."""

    def __init__(self, wire: Wire, rank: int) -> None:
        assert rank not in wire.ranks
        wire.ranks.append(rank)
        self.wire, self.rank, self.destroyed = wire, rank, False

    def broadcast(self, tensor: "torch.Tensor", src: int, stream: object = None) -> None:
        assert (src, self.destroyed) == (0, False)
        if self.rank == src:
            for waiting in self.wire.queues.values():
                waiting.put(tensor.clone())
        else:
            tensor.copy_(self.wire.queues[self.rank].get(timeout=20))
            if self.wire.damage:
                tensor.view(-1)[0] += 1

    def destroy(self) -> None:
        self.destroyed = True


class Engines:
    """Several `LLM`s without Ray; each has its part of a phase in turn."""

    def __init__(self, llms: dict[str, Any]) -> None:
        self.llms = llms
        self.why = ""

    def hold(self) -> Muster:
        gpus = tuple(weight_receiver.take(llm, Phase.MUSTER, {}) for llm in self.llms.values())
        self.muster = Muster(members=tuple(self.llms), gpus=gpus)
        return self.muster

    def phase(self, phase: Phase, info: dict[str, Any]) -> None:
        infos = self.muster.infos(info) if phase is Phase.JOIN else [info] * len(self.llms)
        for llm, one in zip(self.llms.values(), infos, strict=True):
            weight_receiver.take(llm, phase, one)

    def settle(self, version: int, checksum: str) -> None:
        self.phase(Phase.FINISH, {"version": version, "checksum": checksum})

    def let_go(self, why: str) -> None:
        self.why = why


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> dict[int, Wire]:
    """By port. vLLM as it is on a GPU, but for the GPU."""
    import torch
    from vllm.distributed.weight_transfer import nccl_common
    from vllm.model_executor.model_loader import reload
    from vllm.v1.worker import gpu_worker

    made: dict[int, Wire] = {}

    def joined(host: str, port: int, rank: int, world_size: int, device: object) -> Member:
        return Member(made.setdefault(port, Wire(world_size)), rank)

    monkeypatch.setattr(nccl_common, "stateless_init_process_group", joined)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.setattr(reload, name, lambda *_: None)
    monkeypatch.setattr(gpu_worker, "set_current_vllm_config", lambda _: nullcontext())
    monkeypatch.setattr(weight_sender, "_GRACE_S", 0.0)
    return made


class Model:
    """Keeps what is loaded into it."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: "Any") -> set[str]:
        # As models do, which may be given an iterator.
        loaded = {name: tensor.clone() for name, tensor in weights}
        self.weights |= loaded
        return set(loaded)


def llm(tensor_parallel_size: int = 1) -> Any:
    """vLLM's `LLM` over so many of its workers."""
    from vllm import LLM
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.v1.worker.gpu_worker import Worker

    class StrawWorker(WorkerTally, Worker):
        def __init__(self, rank: int) -> None:
            self.model, self.rank = Model(), rank
            parallel = SimpleNamespace(
                data_parallel_index=0, data_parallel_rank=0, world_size=tensor_parallel_size, rank=rank
            )
            self.vllm_config = SimpleNamespace(parallel_config=parallel, model_config=None)
            self.model_runner = SimpleNamespace(reset_lora_state=lambda: None)
            self._weight_update_active = self._weight_update_is_draft = False
            config = WeightTransferConfig(**engine_settings("nccl")["weight_transfer_config"])
            self.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
                config, self.vllm_config, "cpu", self.model
            )

        def tally_gpu(self) -> str:
            return f"gpu {id(self)}"

    class StrawCore:
        def __init__(self) -> None:
            self.workers = [StrawWorker(rank) for rank in range(tensor_parallel_size)]
            self.weight_version, self.resets = "", 0

        def collective_rpc(
            self, method: str, timeout: object = None, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> list[Any]:
            return [getattr(worker, method)(*args, **kwargs or {}) for worker in self.workers]

        def set_weight_version(self, version: str) -> None:
            self.weight_version = version

        def reset_prefix_cache(self, *_: object) -> bool:
            self.resets += 1
            return True

        def reset_encoder_cache(self) -> None:
            self.resets += 1

    class StrawLLM(LLM):
        def __init__(self) -> None:
            self.llm_engine = StrawCore()

    return StrawLLM()


def weights(factor: float = 1.0) -> "dict[str, torch.Tensor]":
    import torch

    made = torch.Generator().manual_seed(0)
    return {
        "a.weight": factor * torch.randn(3, 5, generator=made).bfloat16(),
        "b.bias": factor * torch.randn(7, generator=made),
        "c.weight": factor * torch.randn(4, 6, generator=made).T,
        "d.scale": factor * torch.ones(()),
    }


def outline() -> list[Entry]:
    return [weight_sync.entry(name, tensor) for name, tensor in weights().items()]


def sender(engines: Engines, outlined: Any = outline) -> WeightSender:
    return WeightSender("nccl", engines, outlined, address="127.0.0.1", timeout_s=20.0)


def models(engines: Engines) -> list[Model]:
    return [worker.model for one in engines.llms.values() for worker in one.llm_engine.workers]


def test_weights_come_to_every_worker_of_every_engine(wires: dict[int, Wire]) -> None:
    engines = Engines({"one": llm(), "two": llm(tensor_parallel_size=2)})
    sending = sender(engines)
    for version, factor in ((1, 1.0), (2, 0.5)):
        sending.send(weights(factor).items(), version)
        for model in models(engines):
            assert list(model.weights) == list(weights())
            assert all(model.weights[name].equal(tensor) for name, tensor in weights(factor).items())
        assert {one.llm_engine.weight_version for one in engines.llms.values()} == {str(version)}
    (wire,) = wires.values()
    assert sorted(wire.ranks) == [0, 1, 2, 3]
    assert {one.llm_engine.resets for one in engines.llms.values()} == {4}


def test_an_engine_that_was_started_again_joins_with_all_others(wires: dict[int, Wire]) -> None:
    engines = Engines({"one": llm(), "two": llm()})
    sending = sender(engines)
    sending.send(weights().items(), 1)
    ends = [one.llm_engine.workers[0].weight_transfer_engine.model_update_group for one in engines.llms.values()]
    engines.llms = {"one": engines.llms["one"], "three": llm()}
    sending.send(weights(0.5).items(), 2)
    assert [end.destroyed for end in ends] == [True, False], "the lost one is not there to be told"
    assert [sorted(wire.ranks) for wire in wires.values()] == [[0, 1, 2], [0, 1, 2]]
    assert all(model.weights["b.bias"].equal(weights(0.5)["b.bias"]) for model in models(engines))


def test_damage_on_the_way_is_found(wires: dict[int, Wire]) -> None:
    engines = Engines({"one": llm()})
    sending = sender(engines)
    sending.send(weights().items(), 1)
    next(iter(wires.values())).damage = True
    with pytest.raises(WeightSyncError, match="version 2 arrived damaged: checksum"):
        sending.send(weights(0.5).items(), 2)
    assert "version 2 failed" in engines.why


def test_an_outline_of_other_weights_is_refused_by_vllm_itself(wires: dict[int, Wire]) -> None:
    engines = Engines({"one": llm()})
    with pytest.raises(WeightSyncError, match=r"broadcast failed: .*metadata\(\) disagrees"):
        sender(engines, lambda: list(reversed(outline()))).send(weights().items(), 1)


def test_an_engine_asked_out_of_turn_says_in_which_phase(wires: dict[int, Wire]) -> None:
    with pytest.raises(WeightSyncError, match=r"does not take the weights \(broadcast\).*start_weight_update"):
        weight_receiver.take(llm(), Phase.RECEIVE, {"names": [], "dtype_names": [], "shapes": []})
    with pytest.raises(WeightSyncError, match=r"\(rendezvous\).*Invalid init_info"):
        weight_receiver.take(llm(), Phase.JOIN, {"nonsense": 1})


def test_vllm_knows_what_it_is_told(wires: dict[int, Wire]) -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu_worker import Worker

    for backend in ("nccl", "ipc"):
        arguments = EngineArgs(model="any", **engine_settings(backend))
        assert arguments.weight_transfer_config.backend == backend
    assert not [name for name in dir(WorkerTally) if not name.startswith("__") and hasattr(Worker, name)]
    passage = weight_sender._Passage(Engines({}), outline())
    assert isinstance(passage, VLLMWeightSyncClient)
    info = weight_sender._init_info("ipc", Muster(members=("a",), gpus=(("0",),)), outline(), "")
    assert (info.rank, info.backend, info.packed) == (0, "ipc", True)
    assert info.packed_buffer_size_bytes == weight_sync.PART_BYTES
    assert IPCWeightTransferInitInfo(packed=info.packed).packed
