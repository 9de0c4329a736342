"""Weights that are exchanged under way, and calls that are lost with their replica."""

import asyncio
import contextvars
import random
from dataclasses import replace

import pytest
from serving_examples import FIRST, JUDGE, png, replica, sees, yes

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.serving.dispatch import Dispatcher
from vlgenrm_ray.serving.engine_worker import Replica
from vlgenrm_ray.serving.images import Stored
from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.pictures import Pictures
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

TASK = Task(images=(), question="What is there?", response="A star.", config=JUDGE, deadline_s=10.0)
SECOND = Model(number=1, folder="/second", version="second-1")


def says(word: str) -> object:
    return lambda prompt, chance: f"Verdict: {word}"


def trial(script: object, first: object = yes) -> tuple[Replica, object]:
    async def run() -> tuple[Replica, object]:
        made = replica(first, scripts={"/second": script})  # type: ignore[arg-type]
        return made, await made.trial(SECOND)

    return asyncio.run(run())


def test_a_version_that_sees_is_taken() -> None:
    made, finding = trial(sees)
    assert finding.problem == ""  # type: ignore[attr-defined]
    assert made.model == SECOND


def mumbles(prompt: Prompt, chance: random.Random) -> str:
    return "I cannot tell."


def blind(prompt: Prompt, chance: random.Random) -> str:
    return f"Verdict: {'Yes' if 'yellow' in prompt.text else 'No'}"


def upside_down(prompt: Prompt, chance: random.Random) -> str:
    return f"Verdict: {'No' if 'yellow' in prompt.text else 'Yes'}"


@pytest.mark.parametrize(
    ("script", "said"), [(mumbles, "no reward"), (blind, "does not look"), (upside_down, "does not prefer")]
)
def test_a_version_that_fails_is_refused_and_the_old_one_stays(script: object, said: str) -> None:
    made, finding = trial(script)
    assert said in finding.problem  # type: ignore[attr-defined]
    assert made.model == FIRST
    (outcome,) = asyncio.run(made.judge([TASK], FIRST))
    assert (outcome.version, outcome.reward) == ("first-0", pytest.approx(0.9))


def test_weights_that_do_not_suit_change_nothing() -> None:
    async def run() -> None:
        made = replica()
        with pytest.raises(InputError, match="another architecture"):
            await made.trial(SECOND)
        assert made.model == FIRST

    asyncio.run(run())


def test_a_trial_that_is_cancelled_goes_back() -> None:
    async def run() -> None:
        made = replica(yes, scripts={"/second": sees}, delay_s=lambda prompt, place: 0.05)
        trying = asyncio.ensure_future(made.trial(SECOND))
        while made.model == FIRST:
            await asyncio.sleep(0.005)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert made.model == FIRST
        (outcome,) = await made.judge([TASK], FIRST)
        assert (outcome.version, outcome.reward) == ("first-0", pytest.approx(0.9))

    asyncio.run(run())


def test_no_way_back_is_a_lost_engine() -> None:
    async def run() -> None:
        made = replica(yes, scripts={"/second": blind})
        del made._generator.scripts["/first"]  # type: ignore[attr-defined]
        with pytest.raises(EngineLostError, match="no way back to version first-0"):
            await made.trial(SECOND)

    asyncio.run(run())


def test_replies_name_what_a_folder_really_held() -> None:
    async def loaded(model: Model) -> Model:
        return replace(model, version="other-9") if model == SECOND else model

    async def run() -> None:
        made = replica(yes, scripts={"/second": sees}, loaded=loaded)
        finding = await made.trial(SECOND)
        assert "it held other-9, not second-1" in finding.problem
        assert made.model == FIRST
        (outcome,) = await made.judge([TASK], SECOND)
        assert outcome.version == "other-9"

    asyncio.run(run())


def test_requests_wait_for_an_exchange_and_name_who_judged() -> None:
    async def run() -> list[Outcome]:
        made = replica(says("Yes"), scripts={"/second": sees}, delay_s=lambda prompt, place: 0.05)  # type: ignore[arg-type]
        before = asyncio.ensure_future(made.judge([TASK], FIRST))
        await asyncio.sleep(0.01)
        exchange = asyncio.ensure_future(made.trial(SECOND))
        await asyncio.sleep(0.01)
        after = asyncio.ensure_future(made.judge([TASK], FIRST))
        await exchange
        return [(await before)[0], (await after)[0]]

    before, after = asyncio.run(run())
    assert (before.version, before.reward) == ("first-0", pytest.approx(0.9))
    assert (after.version, after.reward) == ("second-1", pytest.approx(0.1))


def test_seeds_of_one_image_or_none_are_by_the_image_itself() -> None:
    """Fixed, as other ids would be other critiques and other rewards of the same item."""
    first, second = (Stored(name * 64, b"") for name in "ab")
    tasks = [replace(TASK, images=images) for images in ((), (first,), (first, second), (second, first))]
    assert [task.id()[:8] for task in tasks] == ["7390dca6", "c68ea66f", "ffbf5e94", "d92a68bb"]
    assert len({task.key("first-0") for task in tasks}) == 4


def test_one_broken_image_of_several_harms_its_task_only() -> None:
    good, broken = (Stored(name * 64, data) for name, data in (("a", png()), ("b", png()[:40])))
    tasks = [replace(TASK, images=images) for images in ((good, broken), (good, good))]
    spoilt, fine = asyncio.run(replica().judge(tasks, FIRST))
    assert (spoilt.status, spoilt.reward) == (Status.BAD_IMAGE, None)
    assert "(image 2 of 2)" in spoilt.detail
    assert fine.status is Status.OK


def test_pictures_of_any_size_are_looked_at() -> None:
    pictures = [Stored(name * 64, png(side=side)) for name, side in (("a", 16), ("b", 300))]
    tasks = [replace(TASK, images=(picture,)) for picture in pictures]
    outcomes = asyncio.run(replica(yes).judge(tasks, FIRST))
    assert [outcome.status for outcome in outcomes] == [Status.OK, Status.OK]


def test_no_room_by_the_deadline_is_a_timeout_of_its_task_only() -> None:
    async def run() -> list[Outcome]:
        made = replica(yes, delay_s=lambda prompt, place: 0.2)
        made._pictures = Pictures(made.config.images, room=64 * 64)
        tasks = [replace(TASK, images=(Stored(name * 64, png(i)),)) for i, name in enumerate("ab")]
        return await made.judge([tasks[0], replace(tasks[1], deadline_s=0.05)], FIRST)

    first, late = asyncio.run(run())
    assert first.status is Status.OK
    assert (late.status, late.reward, late.version) == (Status.TIMEOUT, None, "first-0")
    assert "no room" in late.detail


def test_a_replica_that_is_behind_catches_up() -> None:
    async def run() -> list[Outcome]:
        made = replica(scripts={"/second": sees})
        outcomes = await asyncio.gather(*(made.judge([TASK], SECOND) for _ in range(5)))
        assert made._generator.num_reloads == 1  # type: ignore[attr-defined]
        return [outcome for (outcome,) in outcomes]

    assert {outcome.version for outcome in asyncio.run(run())} == {"second-1"}


OUTCOME = Outcome(reward=1.0, status=Status.OK, version="first-0")


def dispatcher(call: object, max_chunk: int = 4) -> Dispatcher:
    return Dispatcher(call, lambda e: isinstance(e, EngineLostError), Metrics(), max_chunk=max_chunk)  # type: ignore[arg-type]


def test_tasks_of_one_turn_share_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    inherited = contextvars.ContextVar[str]("inherited", default="nothing")
    seen: list[str] = []

    async def call(tasks: list[Task], model: Model) -> list[Outcome]:
        sizes.append(len(tasks))
        seen.append(inherited.get())
        return [OUTCOME] * len(tasks)

    async def run() -> None:
        inherited.set("a request's")
        dispatch = dispatcher(call)
        assert await asyncio.gather(*(dispatch.ask(TASK, FIRST) for _ in range(10))) == [OUTCOME] * 10

    asyncio.run(run())
    assert sizes == [4, 4, 2]
    assert set(seen) == {"nothing"}, "a call must not end with the request that happened to cause it"


def test_a_lost_call_is_made_again_and_a_killer_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlgenrm_ray.serving.dispatch._FIRST_PAUSE_S", 0.001)

    async def call(tasks: list[Task], model: Model) -> list[Outcome]:
        if any(task.response == "killer" for task in tasks):
            raise EngineLostError("gone")
        return [OUTCOME] * len(tasks)

    async def run() -> list[object]:
        dispatch = dispatcher(call)
        killer = Task(images=(), question="", response="killer", config=JUDGE, deadline_s=10.0)
        asked = [dispatch.ask(task, FIRST) for task in (TASK, killer, TASK)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, killed, last = asyncio.run(run())
    assert (first, last) == (OUTCOME, OUTCOME)
    assert isinstance(killed, EngineLostError)


def test_other_errors_are_not_tried_again() -> None:
    calls = 0

    async def call(tasks: list[Task], model: Model) -> list[Outcome]:
        nonlocal calls
        calls += 1
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="ours"):
        asyncio.run(_ask(call))
    assert calls == 1


async def _ask(call: object) -> Outcome:
    return await dispatcher(call).ask(TASK, FIRST)


def test_a_call_that_nobody_waits_for_is_cancelled() -> None:
    cancelled: list[int] = []

    async def call(tasks: list[Task], model: Model) -> list[Outcome]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(len(tasks))
            raise
        return []

    async def run() -> None:
        dispatch = dispatcher(call)
        asked = [asyncio.ensure_future(dispatch.ask(TASK, FIRST)) for _ in range(2)]
        await asyncio.sleep(0.02)
        asked[0].cancel()
        await asyncio.sleep(0.02)
        assert not cancelled
        asked[1].cancel()
        await asyncio.sleep(0.02)

    asyncio.run(run())
    assert cancelled == [2]
