"""A weight transfer between GPUs on vLLM's own classes: its `LLM`, its workers, its transfer and trainer coordinator.

Only what needs a GPU is a fake: the communicator, the device, and the layers that the weights are loaded into.
"""

import queue
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.weight_sync import gpu_receiver, gpu_sender
from vlgenrm_ray.weight_sync.coordinator import TransferGroup, TransferPhase
from vlgenrm_ray.weight_sync.gpu_receiver import ReceiverExtension, engine_arguments
from vlgenrm_ray.weight_sync.gpu_sender import GpuWeightSender
from vlgenrm_ray.weight_sync.object_store import PART_BYTES

if TYPE_CHECKING:
    import torch


class FakeCommunicator:
    """Delivers what rank 0 sends to every other rank, in order."""

    def __init__(self, world_size: int) -> None:
        self.queues: dict[int, queue.Queue[Any]] = {rank: queue.Queue() for rank in range(1, world_size)}
        self.ranks: list[int] = []
        self.damage = False


class FakeCommunicatorRank:
    """The end of one rank, in place of a `PyNcclCommunicator`."""

    def __init__(self, communicator: FakeCommunicator, rank: int) -> None:
        assert rank not in communicator.ranks
        communicator.ranks.append(rank)
        self.communicator, self.rank, self.destroyed = communicator, rank, False

    def broadcast(self, tensor: "torch.Tensor", src: int, stream: object = None) -> None:
        assert (src, self.destroyed) == (0, False)
        if self.rank == src:
            for waiting in self.communicator.queues.values():
                waiting.put(tensor.clone())
        else:
            tensor.copy_(self.communicator.queues[self.rank].get(timeout=20))
            if self.communicator.damage:
                tensor.view(-1)[0] += 1

    def destroy(self) -> None:
        self.destroyed = True


class InProcessCoordinator:
    """A coordinator of several `LLM`s without Ray. Each executes a phase in turn."""

    def __init__(self, llms: dict[str, Any]) -> None:
        self.llms = llms
        self.cancel_reason = ""

    def begin(self) -> TransferGroup:
        gpus = tuple(gpu_receiver.execute_phase(llm, TransferPhase.RENDEZVOUS, {}) for llm in self.llms.values())
        self.group = TransferGroup(engines=tuple(self.llms), gpus=gpus)
        return self.group

    def run_phase(self, phase: TransferPhase, info: dict[str, Any]) -> None:
        infos = self.group.init_infos(info) if phase is TransferPhase.JOIN else [info] * len(self.llms)
        for llm, one in zip(self.llms.values(), infos, strict=True):
            gpu_receiver.execute_phase(llm, phase, one)

    def commit(self, version: int, checksum: str) -> None:
        self.run_phase(TransferPhase.FINISH, {"version": version, "checksum": checksum})

    def cancel(self, reason: str) -> None:
        self.cancel_reason = reason


@pytest.fixture
def communicators(monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCommunicator]:
    """Return the communicators by port. vLLM runs as on a GPU, without one."""
    import torch
    from vllm.distributed.weight_transfer import nccl_common
    from vllm.model_executor.model_loader import reload
    from vllm.v1.worker import gpu_worker

    by_port: dict[int, FakeCommunicator] = {}

    def join(host: str, port: int, rank: int, world_size: int, device: object) -> FakeCommunicatorRank:
        return FakeCommunicatorRank(by_port.setdefault(port, FakeCommunicator(world_size)), rank)

    monkeypatch.setattr(nccl_common, "stateless_init_process_group", join)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    for name in ("initialize_layerwise_reload", "finalize_layerwise_reload"):
        monkeypatch.setattr(reload, name, lambda *_: None)
    monkeypatch.setattr(gpu_worker, "set_current_vllm_config", lambda _: nullcontext())
    monkeypatch.setattr(gpu_sender, "_EXTRA_TIMEOUT_S", 0.0)
    return by_port


class FakeModel:
    """Stores what is loaded into it."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: "Any") -> set[str]:
        # Reads an iterator once, as models do.
        loaded = {name: tensor.clone() for name, tensor in weights}
        self.weights |= loaded
        return set(loaded)


def llm(tensor_parallel_size: int = 1) -> Any:
    """Return vLLM's `LLM` with so many of its workers."""
    from vllm import LLM
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.v1.worker.gpu_worker import Worker

    class FakeVllmWorker(ReceiverExtension, Worker):
        def __init__(self, rank: int) -> None:
            self.model, self.rank = FakeModel(), rank
            parallel = SimpleNamespace(
                data_parallel_index=0, data_parallel_rank=0, world_size=tensor_parallel_size, rank=rank
            )
            self.vllm_config = SimpleNamespace(parallel_config=parallel, model_config=None)
            self.model_runner = SimpleNamespace(reset_lora_state=lambda: None)
            self._weight_update_active = self._weight_update_is_draft = False
            config = WeightTransferConfig(**engine_arguments("nccl")["weight_transfer_config"])
            self.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
                config, self.vllm_config, "cpu", self.model
            )

        def receiver_gpu(self) -> str:
            return f"gpu {id(self)}"

    class FakeCore:
        def __init__(self) -> None:
            self.workers = [FakeVllmWorker(rank) for rank in range(tensor_parallel_size)]
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

    class FakeLLM(LLM):
        def __init__(self) -> None:
            self.llm_engine = FakeCore()

    return FakeLLM()


def weights(factor: float = 1.0) -> "dict[str, torch.Tensor]":
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": factor * torch.randn(3, 5, generator=generator).bfloat16(),
        "b.bias": factor * torch.randn(7, generator=generator),
        "c.weight": factor * torch.randn(4, 6, generator=generator).T,
        "d.scale": factor * torch.ones(()),
    }


def tensor_specs() -> list[TensorSpec]:
    return [TensorSpec.of(name, tensor) for name, tensor in weights().items()]


def make_sender(coordinator: InProcessCoordinator, specs: Any = tensor_specs) -> GpuWeightSender:
    return GpuWeightSender("nccl", coordinator, specs, address="127.0.0.1", timeout_s=20.0)


def models(coordinator: InProcessCoordinator) -> list[FakeModel]:
    return [worker.model for one in coordinator.llms.values() for worker in one.llm_engine.workers]


def test_weights_arrive_at_every_worker_of_every_engine(communicators: dict[int, FakeCommunicator]) -> None:
    coordinator = InProcessCoordinator({"one": llm(), "two": llm(tensor_parallel_size=2)})
    sender = make_sender(coordinator)
    for version, factor in ((1, 1.0), (2, 0.5)):
        sender.send(weights(factor).items(), version)
        for model in models(coordinator):
            assert list(model.weights) == list(weights())
            assert all(model.weights[name].equal(tensor) for name, tensor in weights(factor).items())
        assert {one.llm_engine.weight_version for one in coordinator.llms.values()} == {str(version)}
    (communicator,) = communicators.values()
    assert sorted(communicator.ranks) == [0, 1, 2, 3]
    assert {one.llm_engine.resets for one in coordinator.llms.values()} == {4}


def test_a_restarted_engine_joins_with_all_others(communicators: dict[int, FakeCommunicator]) -> None:
    coordinator = InProcessCoordinator({"one": llm(), "two": llm()})
    sender = make_sender(coordinator)
    sender.send(weights().items(), 1)
    ends = [one.llm_engine.workers[0].weight_transfer_engine.model_update_group for one in coordinator.llms.values()]
    coordinator.llms = {"one": coordinator.llms["one"], "three": llm()}
    sender.send(weights(0.5).items(), 2)
    assert [end.destroyed for end in ends] == [True, False], "a lost engine cannot leave its group"
    assert [sorted(communicator.ranks) for communicator in communicators.values()] == [[0, 1, 2], [0, 1, 2]]
    assert all(model.weights["b.bias"].equal(weights(0.5)["b.bias"]) for model in models(coordinator))


def test_damaged_weights_are_detected_by_their_checksum(communicators: dict[int, FakeCommunicator]) -> None:
    coordinator = InProcessCoordinator({"one": llm()})
    sender = make_sender(coordinator)
    sender.send(weights().items(), 1)
    next(iter(communicators.values())).damage = True
    with pytest.raises(WeightSyncError, match="version 2 arrived damaged: checksum"):
        sender.send(weights(0.5).items(), 2)
    assert "version 2 failed" in coordinator.cancel_reason


def test_specs_of_other_weights_are_refused_by_vllm_itself(communicators: dict[int, FakeCommunicator]) -> None:
    coordinator = InProcessCoordinator({"one": llm()})
    with pytest.raises(WeightSyncError, match=r"receive failed: .*metadata\(\) disagrees"):
        make_sender(coordinator, lambda: list(reversed(tensor_specs()))).send(weights().items(), 1)


def test_a_phase_out_of_order_is_refused_and_named(communicators: dict[int, FakeCommunicator]) -> None:
    with pytest.raises(WeightSyncError, match=r"refuses the receive phase.*start_weight_update"):
        gpu_receiver.execute_phase(llm(), TransferPhase.RECEIVE, {"names": [], "dtype_names": [], "shapes": []})
    with pytest.raises(WeightSyncError, match=r"refuses the join phase.*Invalid init_info"):
        gpu_receiver.execute_phase(llm(), TransferPhase.JOIN, {"nonsense": 1})


def test_arguments_and_interfaces_are_those_of_vllm(communicators: dict[int, FakeCommunicator]) -> None:
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu_worker import Worker

    for backend in ("nccl", "ipc"):
        engine_args = EngineArgs(model=str(pack_path("vlm")), **engine_arguments(backend))
        assert engine_args.weight_transfer_config.backend == backend
    assert not [name for name in dir(ReceiverExtension) if not name.startswith("__") and hasattr(Worker, name)]
    bridge = gpu_sender._VllmBridge(InProcessCoordinator({}), tensor_specs())
    assert isinstance(bridge, VLLMWeightSyncClient)
    info = gpu_sender._trainer_init_info("ipc", TransferGroup(engines=("a",), gpus=(("0",),)), tensor_specs(), "")
    assert (info.rank, info.backend, info.packed) == (0, "ipc", True)
    assert info.packed_buffer_size_bytes == PART_BYTES
    assert IPCWeightTransferInitInfo(packed=info.packed).packed
