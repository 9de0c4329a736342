"""The GPU weight sender with a fake of vLLM's trainer engine. The integration test has vLLM's own classes."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.errors import TransferBrokenError, WeightSyncError
from vlgenrm_ray.weight_sync import gpu_sender
from vlgenrm_ray.weight_sync.coordinator import TransferGroup, TransferPhase
from vlgenrm_ray.weight_sync.gpu_sender import GpuWeightSender
from vlgenrm_ray.weight_sync.versions import WeightChecksum

SPECS = [TensorSpec(name=f"w{i}", dtype="float32", shape=(2,)) for i in range(5)]


class FakeCoordinator:
    """A `CoordinatorClient` that records its calls and fails in the phases of `failures`."""

    def __init__(self) -> None:
        self.engines: tuple[str, ...] = ("a", "b")
        self.calls: list[Any] = []
        self.failures: dict[TransferPhase, Exception] = {}
        self.cancel_reason = ""

    def begin(self) -> TransferGroup:
        return TransferGroup(engines=self.engines, gpus=(("1", "2"), ("3",)))

    def run_phase(self, phase: TransferPhase, info: dict[str, Any]) -> None:
        self.calls.append((phase, info))
        if phase in self.failures:
            raise self.failures[phase]

    def commit(self, version: int, checksum: str) -> None:
        self.calls.append((version, checksum))

    def cancel(self, reason: str) -> None:
        self.cancel_reason = reason


class FakeTrainer:
    """vLLM's trainer engine: calls its client and takes the weights of its source. It hangs in the phase `stuck`."""

    created: "list[FakeTrainer]"
    stuck = ""

    def __init__(self, info: Any, client: Any, source: Any) -> None:
        self.info, self.client, self.source = info, client, source
        self.model_update_group = SimpleNamespace(destroy=lambda: destroyed.append(self))
        self.sent: list[str] = []
        # A trainer that hung ends after another test has started.
        created = self.created
        client.init_weight_transfer_engine({"world_size": info.world_size})
        self.hang("join")
        created.append(self)

    def send_weights(self) -> None:
        self.client.start_weight_update()
        updating = threading.Thread(target=self._quietly, args=({"names": [m.name for m in self.source.metadata()]},))
        updating.start()
        for name, _ in self.source:
            self.sent.append(name)
            self.hang("receive")
        updating.join()
        self.client.finish_weight_update()

    def _quietly(self, info: dict[str, Any]) -> None:
        try:
            self.client.update_weights(info)
        except Exception:
            FakeTrainer.stuck = "receive"

    def hang(self, where: str) -> None:
        while self.stuck == where:
            time.sleep(0.01)


destroyed: list[FakeTrainer] = []


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCoordinator]:
    """Return a fake coordinator, and put fakes in place of the modules of vLLM."""
    folder = "vllm.distributed.weight_transfer"
    modules = {
        f"{folder}.factory": {"WeightTransferTrainerFactory": SimpleNamespace(trainer_init=_trainer)},
        f"{folder}.base": {"ParamMeta": lambda name, dtype, shape: SimpleNamespace(name=name)},
        f"{folder}.nccl_engine": {"NCCLTrainerInitInfo": SimpleNamespace},
        "vllm.utils.network_utils": {"get_open_port": lambda: 1234},
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**module))  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_sender, "_EXTRA_TIMEOUT_S", 0.0)
    monkeypatch.setattr(gpu_sender, "_POLL_S", 0.01)
    FakeTrainer.created, FakeTrainer.stuck = [], ""
    destroyed.clear()
    yield FakeCoordinator()
    FakeTrainer.stuck = ""


def _trainer(info: Any, *, client: Any, source: Any) -> FakeTrainer:
    return FakeTrainer(info, client, source)


def make_sender(
    coordinator: FakeCoordinator, timeout_s: float = 5.0, specs: Callable[[], list[TensorSpec]] = lambda: SPECS
) -> Any:
    return GpuWeightSender("nccl", coordinator, specs, address="10.0.0.1", timeout_s=timeout_s)


def weights() -> Iterator[Any]:
    import torch

    return ((spec.name, torch.full(spec.shape, i, dtype=torch.float32)) for i, spec in enumerate(SPECS))


def checksum() -> str:
    total = WeightChecksum()
    for _ in total.observe(weights()):
        continue
    return total.hexdigest()


def test_weights_are_sent_and_committed_with_version_and_checksum(coordinator: FakeCoordinator) -> None:
    sender = make_sender(coordinator)
    for version in (0, 1):
        sender.send(weights(), version)
    (trainer,) = FakeTrainer.created
    assert (trainer.info.master_address, trainer.info.master_port, trainer.info.world_size) == ("10.0.0.1", 1234, 4)
    assert (trainer.info.rank, trainer.info.packed) == (0, False)
    assert trainer.sent == [spec.name for spec in SPECS] * 2
    once = [(TransferPhase.START, {}), (TransferPhase.RECEIVE, {"names": trainer.sent[:5]})]
    assert coordinator.calls == [
        (TransferPhase.JOIN, {"world_size": 4}),
        *once,
        (0, checksum()),
        *once,
        (1, checksum()),
    ]
    assert not coordinator.cancel_reason


def test_the_group_is_recreated_after_the_restart_of_an_engine(coordinator: FakeCoordinator) -> None:
    sender = make_sender(coordinator)
    sender.send(weights(), 1)
    coordinator.engines = ("a", "c")
    sender.send(weights(), 2)
    first, second = FakeTrainer.created
    assert destroyed == [first]
    assert len(second.sent) == 5


@pytest.mark.parametrize("phase", [TransferPhase.JOIN, TransferPhase.START, TransferPhase.RECEIVE])
def test_a_lost_engine_is_an_error_at_once_though_vllm_waits_for_it(
    coordinator: FakeCoordinator, phase: TransferPhase
) -> None:
    coordinator.failures = {phase: TransferBrokenError("b was lost")}
    sender, began = make_sender(coordinator, timeout_s=60), time.monotonic()
    with pytest.raises(TransferBrokenError, match="b was lost"):
        sender.send(weights(), 3)
    assert time.monotonic() - began < 5
    assert "version 3 failed: b was lost" in coordinator.cancel_reason
    coordinator.failures, FakeTrainer.stuck = {}, ""
    sender.send(weights(), 3)
    assert coordinator.calls[-1] == (3, checksum())


@pytest.mark.parametrize("phase", [TransferPhase.JOIN, TransferPhase.RECEIVE])
def test_a_hang_is_an_error_that_names_phase_and_engines(coordinator: FakeCoordinator, phase: TransferPhase) -> None:
    FakeTrainer.stuck = phase.value
    expected = rf"version 3: the {phase} phase hangs on the learner's side for more than 0.1 s .*, with engines a, b"
    with pytest.raises(WeightSyncError, match=expected):
        make_sender(coordinator, timeout_s=0.1).send(weights(), 3)
    assert destroyed == FakeTrainer.created
    assert coordinator.cancel_reason


def test_an_error_of_vllm_names_the_phase(coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: FakeTrainer) -> None:
        raise RuntimeError("NCCL error: unhandled cuda error")

    monkeypatch.setattr(FakeTrainer, "send_weights", failing)
    with pytest.raises(WeightSyncError, match="version 3: receive failed: RuntimeError: NCCL error"):
        make_sender(coordinator).send(weights(), 3)


def test_part_of_a_fused_layer_is_refused_before_anything_is_sent(coordinator: FakeCoordinator) -> None:
    part = [TensorSpec(name="l.self_attn.q_proj.weight", dtype="float32", shape=(2,))]
    with pytest.raises(WeightSyncError, match="k_proj"):
        make_sender(coordinator, specs=lambda: part).send(weights(), 3)
    assert not coordinator.calls
