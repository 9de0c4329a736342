"""Weight transfers between GPUs: phases, hangs, losses, and restarted engines that lack the weights."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_rollouts import FakeRolloutEngine, FakeRolloutEngines, rollout_requests, weight_version

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import EngineLostError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.orchestrator import OrchestratorConfig
from vlgenrm_ray.policy.rollouts import RolloutGroup, RolloutRequest, RolloutsConfig
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.weight_sync.coordinator import TransferGroup, TransferPhase, WeightTransferCoordinator
from vlgenrm_ray.weight_sync.gpu_receiver import engine_arguments

NCCL = {"rank_offset": 1, "world_size": 4}


class FakeTransferEngine(FakeRolloutEngine):
    """Executes the phases of a transfer; in the phase `failing` it is lost, refuses or hangs."""

    def __init__(
        self, index: int, failing: TransferPhase | None = None, how: str = "", workers: int = 1, **settings: float
    ) -> None:
        super().__init__(index, **settings)
        self.failing, self.how, self.workers = failing, how, workers
        self.phases: list[tuple[TransferPhase, Mapping[str, Any]]] = []
        self.num_streams = 0

    async def sample(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> AsyncIterator[tuple[int, RolloutGroup]]:
        self.num_streams += 1
        try:
            async for indexed_group in super().sample(requests, sampling):
                yield indexed_group
        finally:
            self.num_streams -= 1

    async def transfer(self, phase: TransferPhase, info: Mapping[str, Any]) -> Any:
        assert not self.num_streams, "an engine in a transfer must not sample"
        self.phases.append((phase, info))
        await asyncio.sleep(60 if (phase, "hangs") == (self.failing, self.how) else 0)
        if phase is self.failing:
            raise (EngineLostError if self.how == "lost" else WeightSyncError)(self.how)
        if phase is TransferPhase.FINISH:
            self.version = info["version"]
        return tuple(f"gpu {self.name} {i}" for i in range(self.workers)) if phase is TransferPhase.RENDEZVOUS else None


async def transfer(coordinator: WeightTransferCoordinator, version: int) -> TransferGroup:
    group = await coordinator.begin()
    for phase, info in (
        (TransferPhase.JOIN, NCCL),
        (TransferPhase.START, {}),
        (TransferPhase.RECEIVE, {"names": ["a"]}),
    ):
        await coordinator.run_phase(phase, info)
    await coordinator.commit(version, "sum")
    return group


async def sampled_versions(engines: FakeRolloutEngines, count: int) -> list[int]:
    return [r.version async for _, group in engines.pool.sample(rollout_requests(count), Sampling(n=1)) for r in group]


def test_every_worker_of_every_engine_has_its_own_rank() -> None:
    group = TransferGroup(engines=("a", "b", "c"), gpus=(("0", "1"), ("2",), ("3", "4")))
    assert group.world_size == 6
    assert [info["rank_offset"] for info in group.init_infos({"rank_offset": 1, "packed": False})] == [1, 3, 4]
    assert group.init_infos({"packed": True}) == [{"packed": True}] * 3


def test_engines_must_be_on_gpus_that_the_backend_reaches() -> None:
    apart, common = TransferGroup(engines=("a",), gpus=(("1",),)), TransferGroup(engines=("a",), gpus=(("0",),))
    apart.check("nccl", "0")
    common.check("ipc", "0")
    with pytest.raises(WeightSyncError, match="ipc needs the engine on the learner's GPU 0, and a is on 1"):
        apart.check("ipc", "0")
    with pytest.raises(WeightSyncError, match="nccl needs a GPU for each, and a is on the learner's, 0"):
        common.check("nccl", "0")


def test_an_engine_is_started_with_the_arguments_of_its_backend() -> None:
    import pydoc

    config = OrchestratorConfig(
        model="m",
        questions=StageFolder(Path()),
        held_out=StageFolder(Path()),
        rollouts=RolloutsConfig(engine=VllmConfig(vllm_args={"swap_space": 0})),
        rewards=(),
        retry=RetryConfig(),
        algorithm=AlgorithmConfig(),
        questions_per_step=1,
        seed=0,
        images=ImageLimits(),
    )
    assert config.engine_config().vllm_args == {"swap_space": 0}
    arguments = engine_arguments("nccl")
    assert replace(config, backend="nccl").engine_config().vllm_args == {"swap_space": 0, **arguments}
    assert arguments["weight_transfer_config"] == {"backend": "nccl"}
    assert pydoc.locate(arguments["worker_extension_cls"]).__name__ == "ReceiverExtension"  # type: ignore[union-attr]


def test_a_transfer_runs_all_phases_on_all_engines() -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0, workers=2), FakeTransferEngine(1), num_engines=2)
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> list[int]:
        group = await transfer(coordinator, 7)
        assert group.engines == ("fake engine 0", "fake engine 1")
        assert group.world_size == 4
        return await sampled_versions(engines, 9)

    assert asyncio.run(scenario()) == [7] * 9
    assert engines.pool.version == 7
    first, second = engines.started
    assert [phase for phase, _ in first.phases] == list(TransferPhase)  # type: ignore[attr-defined]
    assert dict(second.phases)[TransferPhase.JOIN]["rank_offset"] == 3  # type: ignore[attr-defined]
    assert dict(second.phases)[TransferPhase.FINISH] == {"version": 7, "checksum": "sum"}  # type: ignore[attr-defined]


def test_transfer_and_sampling_wait_for_each_other() -> None:
    engines = FakeRolloutEngines(
        FakeTransferEngine(0, group_s=0.01), FakeTransferEngine(1, group_s=0.01), num_engines=2
    )
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await transfer(coordinator, 1)
        sampling = asyncio.ensure_future(sampled_versions(engines, 20))
        await asyncio.sleep(0.03)
        await transfer(coordinator, 2)
        return await sampling

    versions = asyncio.run(scenario())
    assert len(versions) == 20
    assert set(versions) == {1, 2}


def test_an_engine_that_does_not_stop_sampling_is_named_and_all_continue() -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0), FakeTransferEngine(1, group_s=0.4), num_engines=2)
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=0.05)

    async def scenario() -> list[int]:
        await transfer(coordinator, 1)
        sampling = asyncio.ensure_future(sampled_versions(engines, 2))
        await asyncio.sleep(0.01)
        with pytest.raises(WeightSyncError, match=r"after 0.05 s .* have not stopped sampling: 1 \(at version 1\)"):
            await coordinator.begin()
        return await sampling

    assert asyncio.run(scenario()) == [1, 1]
    assert not any(engine.closed for engine in engines.started)


@pytest.mark.parametrize(
    "phase", [TransferPhase.JOIN, TransferPhase.START, TransferPhase.RECEIVE, TransferPhase.FINISH]
)
def test_a_hanging_engine_is_named_with_the_phase(phase: TransferPhase) -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0), FakeTransferEngine(1, phase, "hangs"), num_engines=2)
    expected = rf"after 0.05 s these rollout engines of 2 have not finished the {phase} phase: 1 \(at version 0\)"
    with pytest.raises(WeightSyncError, match=expected):
        asyncio.run(transfer(WeightTransferCoordinator(engines.pool, timeout_s=0.05), 3))
    assert engines.pool.version == 0
    assert all(engine.closed for engine in engines.started)


def test_a_lost_engine_breaks_the_transfer_and_all_engines_are_restarted() -> None:
    engines = FakeRolloutEngines(
        FakeTransferEngine(0),
        FakeTransferEngine(1, TransferPhase.RECEIVE, "lost"),
        FakeTransferEngine(2),
        FakeTransferEngine(3),
        num_engines=2,
    )
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> TransferGroup:
        with pytest.raises(
            TransferBrokenError, match="fake engine 1 was lost in the receive phase of new weights: lost"
        ):
            await transfer(coordinator, 3)
        return await transfer(coordinator, 3)

    assert asyncio.run(scenario()).engines == ("fake engine 2", "fake engine 3")
    assert [engine.closed for engine in engines.started] == [True, True, False, False]


def test_an_engine_that_refuses_is_named() -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0, TransferPhase.FINISH, "arrived damaged"), num_engines=1)
    with pytest.raises(WeightSyncError, match="fake engine 0: arrived damaged"):
        asyncio.run(transfer(WeightTransferCoordinator(engines.pool, timeout_s=5), 3))


def test_a_new_learner_replaces_the_transfer_of_a_dead_one() -> None:
    engines = FakeRolloutEngines(
        FakeTransferEngine(0), FakeTransferEngine(1), FakeTransferEngine(2), FakeTransferEngine(3), num_engines=2
    )
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> None:
        await coordinator.begin()
        await transfer(coordinator, 1)
        assert not engines.started[0].closed
        await coordinator.begin()
        await coordinator.run_phase(TransferPhase.START, {})
        await transfer(coordinator, 2)

    asyncio.run(scenario())
    assert [engine.closed for engine in engines.started] == [True, True, False, False]
    assert engines.pool.version == 2


def test_a_learner_that_dies_while_it_waits_does_not_hold_the_engines() -> None:
    engines = FakeRolloutEngines(
        FakeTransferEngine(0, group_s=0.05), FakeTransferEngine(1, group_s=0.05), num_engines=2
    )
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await transfer(coordinator, 1)
        sampling = asyncio.ensure_future(sampled_versions(engines, 6))
        await asyncio.sleep(0.01)
        dead = asyncio.ensure_future(coordinator.begin())
        await asyncio.sleep(0.01)
        await transfer(coordinator, 2)
        with pytest.raises(TransferBrokenError, match="another learner began a transfer"):
            await dead
        return await sampling

    assert len(asyncio.run(scenario())) == 6
    assert not any(engine.closed for engine in engines.started)


def test_a_restarted_engine_leaves_the_work_to_others_until_the_next_weights() -> None:
    engines = FakeRolloutEngines(
        FakeTransferEngine(0), FakeTransferEngine(1, num_groups=3), FakeTransferEngine(2), num_engines=2
    )
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await transfer(coordinator, 4)
        versions = await sampled_versions(engines, 20)
        assert (await transfer(coordinator, 5)).engines == ("fake engine 0", "fake engine 2")
        return versions + await sampled_versions(engines, 6)

    assert asyncio.run(scenario()) == [4] * 20 + [5] * 6
    assert len(engines.started) == 3
    assert engines.started[2].sampled


def test_weights_that_no_engine_has_any_more_are_an_error() -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0, num_groups=3), FakeTransferEngine(1), num_engines=1)
    coordinator = WeightTransferCoordinator(engines.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await transfer(coordinator, 4)
        with pytest.raises(WeightSyncError, match="no rollout engine has weights of version 4 any more"):
            await sampled_versions(engines, 9)
        await transfer(coordinator, 4)
        return await sampled_versions(engines, 9)

    assert asyncio.run(scenario()) == [4] * 9


def test_the_object_store_may_follow_a_gpu_transfer() -> None:
    engines = FakeRolloutEngines(FakeTransferEngine(0), num_engines=1)

    async def scenario() -> list[int]:
        await transfer(WeightTransferCoordinator(engines.pool, timeout_s=5), 4)
        await engines.pool.load(weight_version(5), timeout_s=5)
        return await sampled_versions(engines, 2)

    assert asyncio.run(scenario()) == [5, 5]
