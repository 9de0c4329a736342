import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from policy_examples import Straw, StrawSampler, asked, version

from vlgenrm_ray.engines.contracts import Sampling
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.policy.pool import Pool
from vlgenrm_ray.policy.rollouts import Asked, Group

TWO = Sampling(n=2)


async def groups(pool: Pool, number: int) -> dict[int, list[str]]:
    return {place: [r.id for r in group] async for place, group in pool.groups(asked(number), TWO)}


def expected(number: int) -> dict[int, list[str]]:
    return {i: [f"q{i}/s0/r0", f"q{i}/s0/r1"] for i in range(number)}


@pytest.mark.parametrize("number", [0, 1, 2, 17])
def test_every_question_is_asked_once_of_some_engine(number: int) -> None:
    straw = Straw(size=3)
    assert asyncio.run(groups(straw.pool, number)) == expected(number)
    assert sorted(q for sampler in straw.made for q in sampler.asked) == sorted(f"q{i}" for i in range(number))


def test_engines_share_the_work() -> None:
    straw = Straw(size=2)
    asyncio.run(groups(straw.pool, 32))
    assert min(len(sampler.asked) for sampler in straw.made) > 8


def test_what_a_lost_engine_had_not_finished_is_asked_of_another() -> None:
    straw = Straw(StrawSampler(0, lives=3), StrawSampler(1), size=2)
    assert asyncio.run(groups(straw.pool, 20)) == expected(20)
    lost, *others = straw.made
    assert (len(lost.asked), lost.closed) == (3, True)
    assert not set(lost.asked) & {q for sampler in others for q in sampler.asked}


def test_an_engine_started_again_has_the_present_weights() -> None:
    straw = Straw(StrawSampler(0, lives=4), size=1)

    async def scenario() -> set[tuple[int, ...]]:
        await straw.pool.start()
        await straw.pool.load(version(7), timeout_s=5)
        found = {tuple(r.version for r in group) async for _, group in straw.pool.groups(asked(9), TWO)}
        return found

    assert asyncio.run(scenario()) == {(7, 7)}
    assert [sampler.version for sampler in straw.made] == [7, 7]
    assert straw.pool.version == 7


def test_other_weights_of_the_same_version_are_loaded_and_each_once() -> None:
    straw = Straw(size=1)

    async def scenario() -> None:
        for weights in (version(2), version(2)):
            await straw.pool.load(weights, timeout_s=5)
            await groups(straw.pool, 3)

    asyncio.run(scenario())
    assert straw.made[0].loads == 2


def test_an_engine_lost_while_it_loads_is_started_again() -> None:
    straw = Straw(StrawSampler(0, lives=0), size=1)
    asyncio.run(straw.pool.load(version(1), timeout_s=5))
    assert [sampler.version for sampler in straw.made] == [0, 1]


def test_an_engine_that_takes_no_weights_when_started_again_is_lost() -> None:
    first, second = StrawSampler(0, lives=4), StrawSampler(1, load_s=60.0)
    straw = Straw(first, second, size=1, stall_s=0.2)

    async def scenario() -> dict[int, list[str]]:
        await straw.pool.load(version(1), timeout_s=5)
        return await groups(straw.pool, 9)

    assert asyncio.run(scenario()) == expected(9)
    assert [sampler.version for sampler in straw.made] == [1, 0, 1]
    assert second.closed


def test_engines_lost_again_and_again_end_it() -> None:
    dying = [StrawSampler(i, lives=0) for i in range(9)]
    straw = Straw(*dying, size=1, restarts=2)
    with pytest.raises(EngineLostError, match="rollout engine 0 was lost 3 times in a row, last of: killed"):
        asyncio.run(groups(straw.pool, 4))
    assert len(straw.made) == 3


def test_engines_lost_now_and_then_do_not() -> None:
    straw = Straw(*(StrawSampler(i, lives=2) for i in range(8)), size=1, restarts=1)
    assert asyncio.run(groups(straw.pool, 15)) == expected(15)


def test_a_hang_names_who_hangs_and_the_version_stays() -> None:
    straw = Straw(StrawSampler(0), StrawSampler(1, load_s=60), size=2)
    with pytest.raises(
        WeightSyncError, match=r"version 3: after 0.05 s .* of 2 have not taken them: 1 \(at version 0\)"
    ):
        asyncio.run(straw.pool.load(version(3), timeout_s=0.05))
    assert straw.pool.version == 0


def test_an_engine_that_hangs_is_lost_and_its_questions_are_asked_of_another() -> None:
    straw = Straw(StrawSampler(0, pace_s=60), StrawSampler(1), size=2, stall_s=0.05)
    assert asyncio.run(groups(straw.pool, 20)) == expected(20)
    assert (straw.made[0].asked, straw.made[0].closed) == ([], True)


def test_engines_that_hang_again_and_again_end_it_and_are_named() -> None:
    hanging = [StrawSampler(i, pace_s=60) for i in range(9)]
    straw = Straw(*hanging, size=1, restarts=1, stall_s=0.05)
    with pytest.raises(
        EngineLostError,
        match=r"engine 0 was lost 2 times in a row, last of: straw 1 hangs: no group finished for 0.05 s "
        r"\(rollouts.stall_timeout_s\) with 4 under way",
    ):
        asyncio.run(groups(straw.pool, 4))


def test_a_slow_engine_does_not_hang_nor_one_that_is_busy_with_what_it_was_asked_before() -> None:
    class InTurn(StrawSampler):
        """One stream at a time, as an actor has them."""

        turn = asyncio.Lock()

        async def sample(self, asked: Sequence[Asked], sampling: Sampling) -> AsyncIterator[tuple[int, Group]]:
            async with self.turn:
                async for found in super().sample(asked, sampling):
                    yield found

    straw = Straw(InTurn(0, pace_s=0.04), size=1, stall_s=0.2)

    async def both() -> list[dict[int, list[str]]]:
        return await asyncio.gather(groups(straw.pool, 8), groups(straw.pool, 8))

    assert asyncio.run(both()) == [expected(8), expected(8)]
    assert len(straw.made) == 1


def test_two_may_ask_at_once() -> None:
    straw = Straw(StrawSampler(0, lives=5), size=2)

    async def both() -> list[dict[int, list[str]]]:
        return await asyncio.gather(groups(straw.pool, 11), groups(straw.pool, 6))

    assert asyncio.run(both()) == [expected(11), expected(6)]


def test_what_is_given_up_leaves_no_worker() -> None:
    straw = Straw(size=2)

    async def scenario() -> int:
        stream = straw.pool.groups(asked(10), TWO)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(scenario()) == 0
