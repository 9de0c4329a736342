"""Weights that go straight into engines: phases, hangs, losses, and engines that come back without them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from policy_examples import Straw, StrawSampler, asked, version

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.engines.weight_transfer import Muster, Phase, engine_settings
from vlgenrm_ray.errors import EngineLostError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy.collector import CollectorJob
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.relay import Relay
from vlgenrm_ray.policy.reward import PatienceConfig
from vlgenrm_ray.policy.rollouts import Asked, Group, RolloutsConfig

NCCL = {"rank_offset": 1, "world_size": 4}


class Engine(StrawSampler):
    """Takes its part in a transfer; in one phase it may be lost, refuse or hang."""

    def __init__(self, number: int, fate: Phase | None = None, how: str = "", workers: int = 1, **kept: float) -> None:
        super().__init__(number, **kept)
        self.fate, self.how, self.workers = fate, how, workers
        self.heard: list[tuple[Phase, Mapping[str, Any]]] = []
        self.sampling = 0

    async def sample(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
        self.sampling += 1
        try:
            async for found in super().sample(asked, sampling):
                yield found
        finally:
            self.sampling -= 1

    async def transfer(self, phase: Phase, info: Mapping[str, Any]) -> Any:
        assert not self.sampling, "an engine in a transfer must not sample"
        self.heard.append((phase, info))
        await asyncio.sleep(60 if (phase, "hangs") == (self.fate, self.how) else 0)
        if phase is self.fate:
            raise (EngineLostError if self.how == "lost" else WeightSyncError)(self.how)
        if phase is Phase.FINISH:
            self.version = info["version"]
        return tuple(f"gpu {self.name} {i}" for i in range(self.workers)) if phase is Phase.MUSTER else None


async def whole(relay: Relay, number: int) -> Muster:
    muster = await relay.hold()
    for phase, info in ((Phase.JOIN, NCCL), (Phase.BEGIN, {}), (Phase.RECEIVE, {"names": ["a"]})):
        await relay.phase(phase, info)
    await relay.settle(number, "sum")
    return muster


async def versions(straw: Straw, number: int) -> list[int]:
    return [r.version async for _, group in straw.pool.groups(asked(number), Sampling(n=1)) for r in group]


def test_every_worker_of_every_engine_has_a_rank_of_its_own() -> None:
    muster = Muster(members=("a", "b", "c"), gpus=(("0", "1"), ("2",), ("3", "4")))
    assert muster.world_size == 6
    assert [info["rank_offset"] for info in muster.infos({"rank_offset": 1, "packed": False})] == [1, 3, 4]
    assert muster.infos({"packed": True}) == [{"packed": True}] * 3


def test_engines_must_be_where_the_backend_reaches_them() -> None:
    apart, common = Muster(members=("a",), gpus=(("1",),)), Muster(members=("a",), gpus=(("0",),))
    apart.check("nccl", "0")
    common.check("ipc", "0")
    with pytest.raises(WeightSyncError, match="ipc needs the engine on the learner's GPU 0, and a is on 1"):
        apart.check("ipc", "0")
    with pytest.raises(WeightSyncError, match="nccl needs a GPU for each, and a is on the learner's, 0"):
        common.check("nccl", "0")


def test_an_engine_is_started_for_its_backend_with_what_its_workers_need() -> None:
    import pydoc

    job = CollectorJob(
        model="m",
        questions=StageFolder(Path()),
        held_out=StageFolder(Path()),
        rollouts=RolloutsConfig(engine=VllmConfig(engine={"swap_space": 0})),
        rewards=(),
        patience=PatienceConfig(),
        algorithm=AlgorithmConfig(),
        questions_per_step=1,
        seed=0,
        images=ImageLimits(),
    )
    assert job.engine().engine == {"swap_space": 0}
    settings = engine_settings("nccl")
    assert replace(job, way="nccl").engine().engine == {"swap_space": 0, **settings}
    assert settings["weight_transfer_config"] == {"backend": "nccl"}
    assert pydoc.locate(settings["worker_extension_cls"]).__name__ == "WorkerTally"  # type: ignore[union-attr]


def test_a_transfer_goes_through_its_phases_in_all_engines() -> None:
    straw = Straw(Engine(0, workers=2), Engine(1), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> list[int]:
        muster = await whole(relay, 7)
        assert muster.members == ("straw 0", "straw 1")
        assert muster.world_size == 4
        return await versions(straw, 9)

    assert asyncio.run(scenario()) == [7] * 9
    assert straw.pool.version == 7
    first, second = straw.made
    assert [phase for phase, _ in first.heard] == list(Phase)  # type: ignore[attr-defined]
    assert dict(second.heard)[Phase.JOIN]["rank_offset"] == 3  # type: ignore[attr-defined]
    assert dict(second.heard)[Phase.FINISH] == {"version": 7, "checksum": "sum"}  # type: ignore[attr-defined]


def test_a_transfer_waits_until_nothing_is_sampled_and_sampling_until_it_is_over() -> None:
    straw = Straw(Engine(0, pace_s=0.01), Engine(1, pace_s=0.01), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await whole(relay, 1)
        sampling = asyncio.ensure_future(versions(straw, 20))
        await asyncio.sleep(0.03)
        await whole(relay, 2)
        return await sampling

    found = asyncio.run(scenario())
    assert len(found) == 20
    assert set(found) == {1, 2}


def test_an_engine_that_samples_on_is_named_and_the_others_go_on() -> None:
    straw = Straw(Engine(0), Engine(1, pace_s=0.4), size=2)
    relay = Relay(straw.pool, timeout_s=0.05)

    async def scenario() -> list[int]:
        await whole(relay, 1)
        sampling = asyncio.ensure_future(versions(straw, 2))
        await asyncio.sleep(0.01)
        with pytest.raises(WeightSyncError, match=r"after 0.05 s .* have not come to rest: 1 \(at version 1\)"):
            await relay.hold()
        return await sampling

    assert asyncio.run(scenario()) == [1, 1]
    assert not any(sampler.closed for sampler in straw.made)


@pytest.mark.parametrize("phase", [Phase.JOIN, Phase.BEGIN, Phase.RECEIVE, Phase.FINISH])
def test_an_engine_that_hangs_is_named_with_the_phase(phase: Phase) -> None:
    straw = Straw(Engine(0), Engine(1, phase, "hangs"), size=2)
    expected = rf"after 0.05 s these rollout engines of 2 have not ended the {phase}: 1 \(at version 0\)"
    with pytest.raises(WeightSyncError, match=expected):
        asyncio.run(whole(Relay(straw.pool, timeout_s=0.05), 3))
    assert straw.pool.version == 0
    assert all(sampler.closed for sampler in straw.made)


def test_one_that_is_lost_ends_the_transfer_and_all_join_the_next() -> None:
    straw = Straw(Engine(0), Engine(1, Phase.RECEIVE, "lost"), Engine(2), Engine(3), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> Muster:
        with pytest.raises(TransferBrokenError, match="straw 1 was lost in the broadcast of new weights: lost"):
            await whole(relay, 3)
        return await whole(relay, 3)

    assert asyncio.run(scenario()).members == ("straw 2", "straw 3")
    assert [sampler.closed for sampler in straw.made] == [True, True, False, False]


def test_one_that_refuses_is_named() -> None:
    straw = Straw(Engine(0, Phase.FINISH, "arrived damaged"), size=1)
    with pytest.raises(WeightSyncError, match="straw 0: arrived damaged"):
        asyncio.run(whole(Relay(straw.pool, timeout_s=5), 3))


def test_a_learner_that_comes_after_another_takes_its_place() -> None:
    straw = Straw(Engine(0), Engine(1), Engine(2), Engine(3), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> None:
        await relay.hold()
        await whole(relay, 1)
        assert not straw.made[0].closed
        await relay.hold()
        await relay.phase(Phase.BEGIN, {})
        await whole(relay, 2)

    asyncio.run(scenario())
    assert [sampler.closed for sampler in straw.made] == [True, True, False, False]
    assert straw.pool.version == 2


def test_a_learner_that_waits_for_the_engines_and_dies_holds_them_for_nobody() -> None:
    straw = Straw(Engine(0, pace_s=0.05), Engine(1, pace_s=0.05), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await whole(relay, 1)
        sampling = asyncio.ensure_future(versions(straw, 6))
        await asyncio.sleep(0.01)
        dead = asyncio.ensure_future(relay.hold())
        await asyncio.sleep(0.01)
        await whole(relay, 2)
        with pytest.raises(TransferBrokenError, match="another learner began a transfer"):
            await dead
        return await sampling

    assert len(asyncio.run(scenario())) == 6
    assert not any(sampler.closed for sampler in straw.made)


def test_an_engine_started_again_leaves_the_work_to_others_until_the_next_weights() -> None:
    straw = Straw(Engine(0), Engine(1, lives=3), Engine(2), size=2)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await whole(relay, 4)
        found = await versions(straw, 20)
        assert (await whole(relay, 5)).members == ("straw 0", "straw 2")
        return found + await versions(straw, 6)

    assert asyncio.run(scenario()) == [4] * 20 + [5] * 6
    assert len(straw.made) == 3
    assert straw.made[2].asked


def test_where_no_engine_has_the_weights_any_more_they_are_asked_for() -> None:
    straw = Straw(Engine(0, lives=3), Engine(1), size=1)
    relay = Relay(straw.pool, timeout_s=5)

    async def scenario() -> list[int]:
        await whole(relay, 4)
        with pytest.raises(WeightSyncError, match="no rollout engine has weights of version 4 any more"):
            await versions(straw, 9)
        await whole(relay, 4)
        return await versions(straw, 9)

    assert asyncio.run(scenario()) == [4] * 9


def test_weights_by_the_object_store_come_after_those_that_went_straight() -> None:
    straw = Straw(Engine(0), size=1)

    async def scenario() -> list[int]:
        await whole(Relay(straw.pool, timeout_s=5), 4)
        await straw.pool.load(version(5), timeout_s=5)
        return await versions(straw, 2)

    assert asyncio.run(scenario()) == [5, 5]
