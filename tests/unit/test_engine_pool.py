import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from fake_rollouts import FakeRolloutEngine, FakeRolloutEngines, rollout_requests, weight_version

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.engine_pool import RolloutEnginePool
from vlgenrm_ray.policy.rollouts import RolloutGroup, RolloutRequest

TWO = Sampling(n=2)


async def sample(pool: RolloutEnginePool, count: int) -> dict[int, list[str]]:
    return {index: [r.id for r in group] async for index, group in pool.sample(rollout_requests(count), TWO)}


def expected(count: int) -> dict[int, list[str]]:
    return {i: [f"q{i}/s0/r0", f"q{i}/s0/r1"] for i in range(count)}


@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_every_request_is_sampled_once(count: int) -> None:
    engines = FakeRolloutEngines(num_engines=3)
    assert asyncio.run(sample(engines.pool, count)) == expected(count)
    assert sorted(q for engine in engines.started for q in engine.sampled) == sorted(f"q{i}" for i in range(count))


def test_engines_share_the_work() -> None:
    engines = FakeRolloutEngines(num_engines=2)
    asyncio.run(sample(engines.pool, 32))
    assert min(len(engine.sampled) for engine in engines.started) > 8


def test_requests_that_a_lost_engine_had_not_finished_go_to_another() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0, num_groups=3), FakeRolloutEngine(1), num_engines=2)
    assert asyncio.run(sample(engines.pool, 20)) == expected(20)
    lost, *others = engines.started
    assert (len(lost.sampled), lost.closed) == (3, True)
    assert not set(lost.sampled) & {q for engine in others for q in engine.sampled}


def test_a_restarted_engine_has_the_current_weights() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0, num_groups=4), num_engines=1)

    async def scenario() -> set[tuple[int, ...]]:
        await engines.pool.start()
        await engines.pool.load(weight_version(7), timeout_s=5)
        return {tuple(r.version for r in group) async for _, group in engines.pool.sample(rollout_requests(9), TWO)}

    assert asyncio.run(scenario()) == {(7, 7)}
    assert [engine.version for engine in engines.started] == [7, 7]
    assert engines.pool.version == 7


def test_other_weights_of_the_same_version_are_loaded_and_each_only_once() -> None:
    engines = FakeRolloutEngines(num_engines=1)

    async def scenario() -> None:
        for weights in (weight_version(2), weight_version(2)):
            await engines.pool.load(weights, timeout_s=5)
            await sample(engines.pool, 3)

    asyncio.run(scenario())
    assert engines.started[0].num_loads == 2


def test_an_engine_lost_while_it_loads_is_restarted() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0, num_groups=0), num_engines=1)
    asyncio.run(engines.pool.load(weight_version(1), timeout_s=5))
    assert [engine.version for engine in engines.started] == [0, 1]


def test_a_restarted_engine_that_hangs_while_it_loads_counts_as_lost() -> None:
    first, second = FakeRolloutEngine(0, num_groups=4), FakeRolloutEngine(1, load_s=60.0)
    engines = FakeRolloutEngines(first, second, num_engines=1, stall_s=0.2)

    async def scenario() -> dict[int, list[str]]:
        await engines.pool.load(weight_version(1), timeout_s=5)
        return await sample(engines.pool, 9)

    assert asyncio.run(scenario()) == expected(9)
    assert [engine.version for engine in engines.started] == [1, 0, 1]
    assert second.closed


def test_too_many_losses_in_a_row_are_an_error() -> None:
    dying = [FakeRolloutEngine(i, num_groups=0) for i in range(9)]
    engines = FakeRolloutEngines(*dying, num_engines=1, max_restarts=2)
    with pytest.raises(EngineLostError, match="rollout engine 0 was lost 3 times in a row, last error: killed"):
        asyncio.run(sample(engines.pool, 4))
    assert len(engines.started) == 3


def test_losses_with_progress_in_between_are_no_error() -> None:
    engines = FakeRolloutEngines(*(FakeRolloutEngine(i, num_groups=2) for i in range(8)), num_engines=1, max_restarts=1)
    assert asyncio.run(sample(engines.pool, 15)) == expected(15)


def test_a_load_timeout_names_the_late_engine_and_the_version_stays() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0), FakeRolloutEngine(1, load_s=60), num_engines=2)
    with pytest.raises(
        WeightSyncError, match=r"version 3: after 0.05 s .* of 2 have not loaded them: 1 \(at version 0\)"
    ):
        asyncio.run(engines.pool.load(weight_version(3), timeout_s=0.05))
    assert engines.pool.version == 0


def test_requests_of_a_stalled_engine_go_to_another() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0, group_s=60), FakeRolloutEngine(1), num_engines=2, stall_s=0.05)
    assert asyncio.run(sample(engines.pool, 20)) == expected(20)
    assert (engines.started[0].sampled, engines.started[0].closed) == ([], True)


def test_too_many_stalls_in_a_row_are_an_error_that_names_the_engine() -> None:
    hanging = [FakeRolloutEngine(i, group_s=60) for i in range(9)]
    engines = FakeRolloutEngines(*hanging, num_engines=1, max_restarts=1, stall_s=0.05)
    with pytest.raises(
        EngineLostError,
        match=r"engine 0 was lost 2 times in a row, last error: fake engine 1 hangs: no group finished for 0.05 s "
        r"\(rollouts.stall_timeout_s\) with 4 requests left",
    ):
        asyncio.run(sample(engines.pool, 4))


def test_a_slow_engine_and_one_busy_with_an_earlier_stream_are_not_stalled() -> None:
    class SequentialEngine(FakeRolloutEngine):
        """Runs one stream at a time, as an actor does."""

        lock = asyncio.Lock()

        async def sample(
            self, requests: Sequence[RolloutRequest], sampling: Sampling
        ) -> AsyncIterator[tuple[int, RolloutGroup]]:
            async with self.lock:
                async for indexed_group in super().sample(requests, sampling):
                    yield indexed_group

    engines = FakeRolloutEngines(SequentialEngine(0, group_s=0.04), num_engines=1, stall_s=0.2)

    async def both() -> list[dict[int, list[str]]]:
        return await asyncio.gather(sample(engines.pool, 8), sample(engines.pool, 8))

    assert asyncio.run(both()) == [expected(8), expected(8)]
    assert len(engines.started) == 1


def test_two_streams_may_run_at_once() -> None:
    engines = FakeRolloutEngines(FakeRolloutEngine(0, num_groups=5), num_engines=2)

    async def both() -> list[dict[int, list[str]]]:
        return await asyncio.gather(sample(engines.pool, 11), sample(engines.pool, 6))

    assert asyncio.run(both()) == [expected(11), expected(6)]


def test_a_closed_stream_leaves_no_task() -> None:
    engines = FakeRolloutEngines(num_engines=2)

    async def scenario() -> int:
        stream = engines.pool.sample(rollout_requests(10), TWO)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(scenario()) == 0
