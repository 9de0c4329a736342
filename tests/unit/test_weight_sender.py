"""The learner's side of a transfer, over a trainer engine that does as vLLM's does; see also the integration test."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vlgenrm_ray.engines import weight_sender
from vlgenrm_ray.engines.weight_sender import WeightSender
from vlgenrm_ray.engines.weight_sync import Checksum, Entry
from vlgenrm_ray.engines.weight_transfer import Muster, Phase
from vlgenrm_ray.errors import TransferBrokenError, WeightSyncError

ENTRIES = [Entry(name=f"w{i}", dtype="float32", shape=(2,)) for i in range(5)]


class Engines:
    """Those that vLLM's side talks to."""

    def __init__(self) -> None:
        self.members: tuple[str, ...] = ("a", "b")
        self.heard: list[Any] = []
        self.failing: dict[Phase, Exception] = {}
        self.given_up = ""

    def hold(self) -> Muster:
        return Muster(members=self.members, gpus=(("1", "2"), ("3",)))

    def phase(self, phase: Phase, info: dict[str, Any]) -> None:
        self.heard.append((phase, info))
        if phase in self.failing:
            raise self.failing[phase]

    def settle(self, version: int, checksum: str) -> None:
        self.heard.append((version, checksum))

    def let_go(self, why: str) -> None:
        self.given_up = why


class Trainer:
    """As vLLM's trainer engine: asks its client, and takes the source's weights; `stuck` is where it never returns."""

    made: "list[Trainer]"
    stuck = ""

    def __init__(self, info: Any, client: Any, source: Any) -> None:
        self.info, self.client, self.source = info, client, source
        self.model_update_group = SimpleNamespace(destroy=lambda: destroyed.append(self))
        self.sent: list[str] = []
        # One that hung ends when another test has begun.
        made = self.made
        client.init_weight_transfer_engine({"world_size": info.world_size})
        self.hang("rendezvous")
        made.append(self)

    def send_weights(self) -> None:
        self.client.start_weight_update()
        asking = threading.Thread(target=self._quietly, args=({"names": [m.name for m in self.source.metadata()]},))
        asking.start()
        for name, _ in self.source:
            self.sent.append(name)
            self.hang("broadcast")
        asking.join()
        self.client.finish_weight_update()

    def _quietly(self, info: dict[str, Any]) -> None:
        try:
            self.client.update_weights(info)
        except Exception:
            Trainer.stuck = "broadcast"

    def hang(self, where: str) -> None:
        while self.stuck == where:
            time.sleep(0.01)


destroyed: list[Trainer] = []


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """Engines, and a vLLM of straw, which is not imported."""
    folder = "vllm.distributed.weight_transfer"
    straw = {
        f"{folder}.factory": {"WeightTransferTrainerFactory": SimpleNamespace(trainer_init=_trainer)},
        f"{folder}.base": {"ParamMeta": lambda name, dtype, shape: SimpleNamespace(name=name)},
        f"{folder}.nccl_engine": {"NCCLTrainerInitInfo": SimpleNamespace},
        "vllm.utils.network_utils": {"get_open_port": lambda: 1234},
    }
    for name, module in straw.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**module))  # type: ignore[arg-type]
    monkeypatch.setattr(weight_sender, "_GRACE_S", 0.0)
    monkeypatch.setattr(weight_sender, "_LOOK_S", 0.01)
    Trainer.made, Trainer.stuck = [], ""
    destroyed.clear()
    yield Engines()
    Trainer.stuck = ""


def _trainer(info: Any, *, client: Any, source: Any) -> Trainer:
    return Trainer(info, client, source)


def sender(engines: Engines, timeout_s: float = 5.0, outline: Callable[[], list[Entry]] = lambda: ENTRIES) -> Any:
    return WeightSender("nccl", engines, outline, address="10.0.0.1", timeout_s=timeout_s)


def weights() -> Iterator[Any]:
    import torch

    return ((one.name, torch.full(one.shape, i, dtype=torch.float32)) for i, one in enumerate(ENTRIES))


def checksum() -> str:
    total = Checksum()
    for _ in total.counting(weights()):
        continue
    return total.hexdigest()


def test_weights_are_sent_and_settled_by_their_version_and_checksum(engines: Engines) -> None:
    sending = sender(engines)
    for version in (0, 1):
        sending.send(weights(), version)
    (trainer,) = Trainer.made
    assert (trainer.info.master_address, trainer.info.master_port, trainer.info.world_size) == ("10.0.0.1", 1234, 4)
    assert (trainer.info.rank, trainer.info.packed) == (0, False)
    assert trainer.sent == [one.name for one in ENTRIES] * 2
    once = [(Phase.BEGIN, {}), (Phase.RECEIVE, {"names": trainer.sent[:5]})]
    assert engines.heard == [(Phase.JOIN, {"world_size": 4}), *once, (0, checksum()), *once, (1, checksum())]
    assert not engines.given_up


def test_the_group_is_made_anew_when_an_engine_is_another(engines: Engines) -> None:
    sending = sender(engines)
    sending.send(weights(), 1)
    engines.members = ("a", "c")
    sending.send(weights(), 2)
    first, second = Trainer.made
    assert destroyed == [first]
    assert len(second.sent) == 5


@pytest.mark.parametrize("phase", [Phase.JOIN, Phase.BEGIN, Phase.RECEIVE])
def test_an_engine_that_is_lost_is_told_at_once_though_vllm_waits_for_it(engines: Engines, phase: Phase) -> None:
    engines.failing = {phase: TransferBrokenError("b was lost")}
    sending, began = sender(engines, timeout_s=60), time.monotonic()
    with pytest.raises(TransferBrokenError, match="b was lost"):
        sending.send(weights(), 3)
    assert time.monotonic() - began < 5
    assert "version 3 failed: b was lost" in engines.given_up
    engines.failing, Trainer.stuck = {}, ""
    sending.send(weights(), 3)
    assert engines.heard[-1] == (3, checksum())


@pytest.mark.parametrize("phase", [Phase.JOIN, Phase.RECEIVE])
def test_a_hang_becomes_an_error_that_names_phase_and_engines(engines: Engines, phase: Phase) -> None:
    Trainer.stuck = phase.value
    expected = rf"version 3: the {phase} hangs on the learner's side, 0.1 s .*; it was with a, b"
    with pytest.raises(WeightSyncError, match=expected):
        sender(engines, timeout_s=0.1).send(weights(), 3)
    assert destroyed == Trainer.made
    assert engines.given_up


def test_what_vllm_raises_is_named_by_phase(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Trainer) -> None:
        raise RuntimeError("NCCL error: unhandled cuda error")

    monkeypatch.setattr(Trainer, "send_weights", failing)
    with pytest.raises(WeightSyncError, match="version 3: broadcast failed: RuntimeError: NCCL error"):
        sender(engines).send(weights(), 3)


def test_part_of_a_fused_layer_is_refused_before_anything_is_sent(engines: Engines) -> None:
    part = [Entry(name="l.self_attn.q_proj.weight", dtype="float32", shape=(2,))]
    with pytest.raises(WeightSyncError, match="k_proj"):
        sender(engines, outline=lambda: part).send(weights(), 3)
    assert not engines.heard
