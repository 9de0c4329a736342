"""Rewards by a Python function: every kind of callable, every way to fail, and calls that never return."""

import asyncio
import collections
import concurrent.futures
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import factories
import numpy as np
import pytest

from vlgenrm_ray.errors import ConfigError, EngineLostError
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.rewards import isolated_function
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.rewards.function import FunctionReward, check_function, load_function
from vlgenrm_ray.rewards.isolated_function import IsolatedFunctionReward
from vlgenrm_ray.rewards.reward import RewardOutput


def rollouts(*texts: str) -> list[Rollout]:
    return [factories.rollout(f"q0/s0/r{i}", text=text) for i, text in enumerate(texts)]


def score(function: Any, *texts: str, deadline_s: float = 20.0, **settings: Any) -> list[RewardOutput]:
    """Score texts with a function, in an event loop that must never be blocked."""

    async def run() -> list[RewardOutput]:
        reward = FunctionReward(function, deadline_s, **settings)
        try:
            return await reward.score(rollouts(*texts))
        finally:
            await reward.close()

    return asyncio.run(run())


def outcomes(outputs: Sequence[RewardOutput]) -> list[tuple[float | None, str]]:
    return [(output.reward, output.status) for output in outputs]


# -- callables ---------------------------------------------------------------------------------------------------------


def length(question: Question, response: str) -> float:
    return float(len(response))


async def async_length(question: Question, response: str) -> float:
    await asyncio.sleep(0.001)
    return float(len(response))


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def scaled_length(scale: float, question: Question, response: str) -> float:
    return scale * len(response)


async def async_scaled_length(scale: float, question: Question, response: str) -> float:
    return scale * len(response)


class Length:
    """A callable object, with methods of every kind."""

    def __call__(self, question: Question, response: str) -> float:
        return float(len(response))

    def method(self, question: Question, response: str) -> float:
        return float(len(response))

    async def async_method(self, question: Question, response: str) -> float:
        return float(len(response))

    @classmethod
    def of_class(cls, question: Question, response: str) -> float:
        return float(len(response))

    @classmethod
    async def async_of_class(cls, question: Question, response: str) -> float:
        return float(len(response))

    @staticmethod
    def static(question: Question, response: str) -> float:
        return float(len(response))


class AsyncLength:
    async def __call__(self, question: Question, response: str) -> float:
        return float(len(response))


class Delayed:
    """An awaitable that is no coroutine."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0.001).__await__()
        return self.value


def returns_task(question: Question, response: str) -> "asyncio.Task[float]":
    return asyncio.get_running_loop().create_task(async_length(question, response))


async def returns_coroutine(question: Question, response: str) -> Any:
    return async_length(question, response)


def runs_an_event_loop(question: Question, response: str) -> float:
    return asyncio.run(async_length(question, response))


def returns_future(question: Question, response: str) -> Any:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return executor.submit(length, question, response)
    finally:
        executor.shutdown(wait=False)


CALLABLES = {
    "function": length,
    "coroutine function": async_length,
    "lambda": lambda question, response: len(response),
    "partial": functools.partial(scaled_length, 1.0),
    "partial of a coroutine function": functools.partial(async_scaled_length, 1.0),
    "partial of a partial": functools.partial(functools.partial(async_scaled_length), 1.0),
    "decorated function": decorated(length),
    "decorated coroutine function": decorated(async_length),
    "object": Length(),
    "object with a coroutine method": AsyncLength(),
    "partial of an object": functools.partial(AsyncLength()),
    "method": Length().method,
    "coroutine method": Length().async_method,
    "class method": Length.of_class,
    "coroutine class method": Length.async_of_class,
    "static method": Length.static,
    "returns a coroutine": lambda question, response: async_length(question, response),
    "returns an awaitable": lambda question, response: Delayed(float(len(response))),
    "returns a task": returns_task,
    "returns a gathering": lambda question, response: asyncio.gather(async_length(question, response)),
    "returns a coroutine of a coroutine": returns_coroutine,
    "runs an event loop": runs_an_event_loop,
    "returns a future of a thread pool": returns_future,
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", CALLABLES)
def test_every_kind_of_callable_is_called(name: str) -> None:
    expected = [(1.0, "ok"), (3.0, "ok")]
    if name == "returns a gathering":
        expected = [(None, "not_a_number")] * 2
    assert outcomes(score(CALLABLES[name], "a", "abc")) == expected


def test_coroutines_share_one_event_loop() -> None:
    """Clients and semaphores of the user's module belong to an event loop."""
    loops = set()

    async def function(question: Question, response: str) -> float:
        loops.add(asyncio.get_running_loop())
        return 1.0

    async def run() -> None:
        reward = FunctionReward(function)
        for _ in range(3):
            await reward.score(rollouts("a", "b"))
        await reward.close()
        assert asyncio.get_running_loop() not in loops

    asyncio.run(run())
    assert len(loops) == 1


# -- values ------------------------------------------------------------------------------------------------------------


def tensor(*values: float) -> Any:
    import torch

    return torch.tensor(values if len(values) != 1 else values[0], requires_grad=True)


class Unprintable:
    def __repr__(self) -> str:
        raise SystemExit(3)


VALUES: list[tuple[Any, float | None, str]] = [
    (1, 1.0, "ok"),
    (0.25, 0.25, "ok"),
    (True, 1.0, "ok"),
    (False, 0.0, "ok"),
    (np.float32(0.5), 0.5, "ok"),
    (np.int64(2), 2.0, "ok"),
    (np.bool_(True), 1.0, "ok"),
    (np.array(0.5), 0.5, "ok"),
    (np.array([0.5]), 0.5, "ok"),
    (Decimal("0.5"), 0.5, "ok"),
    (Fraction(1, 4), 0.25, "ok"),
    (None, None, "no_reward"),
    (float("nan"), None, "not_finite"),
    (float("-inf"), None, "not_finite"),
    (np.float64("nan"), None, "not_finite"),
    (np.ma.masked, None, "not_finite"),
    (10**400, None, "not_finite"),
    ("0.5", None, "not_a_number"),
    (np.str_("0.5"), None, "not_a_number"),
    ("yes", None, "not_a_number"),
    (b"1", None, "not_a_number"),
    ("", None, "not_a_number"),
    ({"score": 0.5}, None, "not_a_number"),
    ({}, None, "not_a_number"),
    ([0.5], None, "not_a_number"),
    ((0.5, {}), None, "not_a_number"),
    (np.array([0.5, 0.5]), None, "not_a_number"),
    (np.array([]), None, "not_a_number"),
    (np.datetime64("2026-01-01"), None, "not_a_number"),
    (1j, None, "not_a_number"),
    (np.complex64(1), None, "not_a_number"),
    (object(), None, "not_a_number"),
    (length, None, "not_a_number"),
    (float, None, "not_a_number"),
    (NotImplemented, None, "not_a_number"),
    (Unprintable(), None, "SystemExit"),
    (collections.Counter(a=1), None, "not_a_number"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value[0]).__name__)
@pytest.mark.parametrize("is_async", [False, True])
def test_every_value_is_a_reward_or_a_status(value: tuple[Any, float | None, str], is_async: bool) -> None:
    async def async_function(question: Question, response: str) -> Any:
        return value[0]

    (output,) = score(async_function if is_async else lambda question, response: value[0], "a")
    assert (output.reward, output.status) == value[1:]
    assert output.reward is None or type(output.reward) is float
    assert bool(output.detail) == (output.reward is None)


def test_tensors_of_one_element_are_rewards() -> None:
    values = {"scalar": tensor(0.5), "many": tensor(0.5, 0.25), "half": tensor(0.5).bfloat16(), "nan": tensor(np.nan)}
    assert outcomes(score(lambda question, response: values[response], *values)) == [
        (0.5, "ok"),
        (None, "not_a_number"),
        (0.5, "ok"),
        (None, "not_finite"),
    ]


def test_the_detail_of_a_wrong_value_is_short_and_says_what_to_return() -> None:
    (output,) = score(lambda question, response: {"score": "x" * 10_000}, "a")
    assert "it must return a number, or None" in output.detail
    assert "(dict)" in output.detail
    assert len(output.detail) < 300


def generators(question: Question, response: str) -> Iterator[float]:
    yield 0.5


async def async_generators(question: Question, response: str) -> Any:
    yield 0.5


@pytest.mark.parametrize("function", [generators, async_generators])
def test_a_generator_is_no_reward(function: Any) -> None:
    assert outcomes(score(function, "a")) == [(None, "not_a_number")]


# -- exceptions --------------------------------------------------------------------------------------------------------


class OwnBaseError(BaseException):
    """Derived from BaseException, and its message cannot be read."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


ERRORS: list[BaseException] = [
    ValueError("bad"),
    AssertionError(),
    SystemExit(),
    SystemExit("done"),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(0.5),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    TimeoutError("mine"),
    concurrent.futures.CancelledError(),
    concurrent.futures.TimeoutError(),
    RecursionError("deep"),
    MemoryError(),
    BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
    ExceptionGroup("several", [ValueError()]),
    OwnBaseError(),
]


def failing(error: BaseException) -> dict[str, Any]:
    """Functions that raise an error for the response "bad", in every place where one can."""

    def plain(question: Question, response: str) -> float:
        if response == "bad":
            raise error
        return 1.0

    async def coroutine(question: Question, response: str) -> float:
        await asyncio.sleep(0.001)
        return plain(question, response)

    async def with_a_task(question: Question, response: str) -> float:
        return await asyncio.create_task(coroutine(question, response))

    class Number:
        def __float__(self) -> float:
            raise error

    return {
        "plain": plain,
        "coroutine": coroutine,
        "with_a_task": with_a_task,
        "returns_coroutine": decorated(coroutine),
        "in_the_value": lambda question, response: Number() if response == "bad" else 1.0,
    }


@pytest.mark.parametrize("place", failing(ValueError()))
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_costs_its_own_rollout_alone(error: BaseException, place: str) -> None:
    began = time.monotonic()
    good, bad, other = score(failing(error)[place], "good", "bad", "good", deadline_s=5.0)
    assert time.monotonic() - began < 4.0
    assert outcomes([good, other]) == [(1.0, "ok")] * 2
    assert bad.reward is None
    assert bad.status not in ("ok", "timeout")
    assert bad.detail


def test_the_status_is_the_exception_and_the_detail_its_message() -> None:
    def function(question: Question, response: str) -> float:
        if response == "exit":
            sys.exit("no more")
        if response == "wrong":
            raise ValueError
        return {}[response]

    exited, wrong, missing = score(function, "exit", "wrong", "right")
    assert (exited.status, exited.detail) == ("SystemExit", "the function raised SystemExit(no more)")
    assert (missing.status, missing.detail) == ("KeyError", "'right'")
    assert wrong.status == "ValueError"
    assert __file__ in wrong.detail, "an exception without a message is located"


def test_the_first_failure_of_each_status_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    score(lambda question, response: {}[response], "a", "b")
    (record,) = caplog.records
    assert "KeyError" in record.getMessage()
    assert "in <lambda>" in record.getMessage()


# -- deadlines ---------------------------------------------------------------------------------------------------------


def spin(until: threading.Event | None = None) -> None:
    while until is None or not until.is_set():
        pass


async def async_blocks(question: Question, response: str) -> float:
    if response == "hangs":
        time.sleep(3.0)
    return 1.0


async def async_spins(question: Question, response: str) -> float:
    if response == "hangs":
        spin()
    return 1.0


async def async_waits(question: Question, response: str) -> float:
    if response == "hangs":
        await asyncio.Event().wait()
    return 1.0


async def async_refuses_to_end(question: Question, response: str) -> float:
    while response == "hangs":
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue
    return 1.0


def sleeps(question: Question, response: str) -> float:
    if response == "hangs":
        time.sleep(3600)
    return 1.0


def spins(question: Question, response: str) -> float:
    if response == "hangs":
        spin()
    return 1.0


def waits_for_a_lock(question: Question, response: str) -> float:
    if response == "hangs":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    return 1.0


@pytest.mark.parametrize(
    "function",
    [sleeps, spins, waits_for_a_lock, async_blocks, async_spins, async_waits, async_refuses_to_end],
    ids=lambda function: function.__name__,
)
def test_a_call_that_never_returns_costs_its_own_rollout_alone(function: Any) -> None:
    began = time.monotonic()
    outputs = score(function, "good", "hangs", "good", "good", deadline_s=0.6)
    assert time.monotonic() - began < 2.5
    assert outcomes(outputs) == [(1.0, "ok"), (None, "timeout"), (1.0, "ok"), (1.0, "ok")]
    assert "0.6 s" in outputs[1].detail


def test_after_a_call_that_blocks_the_next_ones_are_scored() -> None:
    async def run() -> list[list[tuple[float | None, str]]]:
        reward = FunctionReward(async_spins, 0.4)
        return [outcomes(await reward.score(rollouts(text))) for text in ("hangs", "good", "hangs", "good")]

    assert asyncio.run(run()) == [[(None, "timeout")], [(1.0, "ok")]] * 2


def test_endless_loops_are_interrupted() -> None:
    before = threading.active_count()
    score(spins, "hangs", "hangs", deadline_s=0.2)
    score(async_spins, "hangs", deadline_s=0.2)
    end = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("is_async", [False, True])
def test_the_calls_of_a_group_run_concurrently(is_async: bool) -> None:
    async def async_function(question: Question, response: str) -> float:
        await asyncio.sleep(0.3)
        return 1.0

    def function(question: Question, response: str) -> float:
        time.sleep(0.3)
        return 1.0

    began = time.monotonic()
    outputs = score(async_function if is_async else function, *"abcdefgh")
    assert time.monotonic() - began < 1.2
    assert outcomes(outputs) == [(1.0, "ok")] * 8


def test_the_number_of_concurrent_calls_is_limited() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def function(question: Question, response: str) -> float:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return 1.0

    score(function, *"abcdefgh", max_concurrency=2)
    assert most == 2
    outputs = score(sleeps, "hangs", "good", deadline_s=0.2, max_concurrency=1)
    assert outcomes(outputs) == [(None, "timeout")] * 2
    assert "1 other calls were running" in outputs[1].detail


def test_a_cancelled_caller_leaves_no_call_behind() -> None:
    before = threading.active_count()

    async def run() -> None:
        for function in (spins, async_waits):
            reward = FunctionReward(function)
            task = asyncio.ensure_future(reward.score(rollouts("hangs", "hangs")))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await reward.close()

    asyncio.run(run())
    end = time.monotonic() + 5.0
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("function", ["sleeps", "async_waits", "async_refuses_to_end"])
def test_calls_that_hang_do_not_delay_the_end_of_the_process(function: str) -> None:
    code = f"""
import asyncio, time
import factories
from vlgenrm_ray.rewards.function import FunctionReward
def sleeps(question, response):
    time.sleep(3600)
async def async_waits(question, response):
    await asyncio.sleep(3600)
async def async_refuses_to_end(question, response):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
print(asyncio.run(FunctionReward({function}, 0.2).score([factories.rollout("a", text="x")]))[0].status)
"""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="tests")
    assert ended.stdout.strip() == "timeout", ended.stderr
    assert time.monotonic() - began < 30


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str) -> str:
        name = f"reward_module_{time.monotonic_ns()}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


USER_MODULE = """
class Length:
    def __call__(self, question, response): return len(response)
    @classmethod
    def of_class(cls, question, response): return len(response)
    @staticmethod
    def static(question, response): return len(response)
length_object = Length()
"""


@pytest.mark.parametrize("attribute", ["Length", "Length.of_class", "Length.static", "length_object"])
def test_classes_methods_and_objects_are_named_by_their_path(module: Callable[[str], str], attribute: str) -> None:
    name = f"{module(USER_MODULE)}:{attribute}"
    check_function(name)
    assert outcomes(score(load_function(name), "abc")) == [(3.0, "ok")]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(0)", "SystemExit"),
        ("def function(: pass", "SyntaxError"),
        ("1 / 0", "division by zero"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("function = 3", "is not a function"),
        ("class function:\n  def __init__(self, path): ...\n  def __call__(self, q, r): ...", "path"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(module: Callable[[str], str], code: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(f"{module(code)}:function")


def test_a_function_of_other_arguments_is_refused_before_the_run(module: Callable[[str], str]) -> None:
    name = module("def one(response): ...\ndef two(question, response, scale=1.0): ...\ndef any(*args, **kwargs): ...")
    check_function(f"{name}:two")
    check_function(f"{name}:any")
    with pytest.raises(ConfigError, match=r"too many positional arguments.*\(response\)"):
        check_function(f"{name}:one")


def test_settings_of_functions_are_for_functions() -> None:
    with pytest.raises(ValueError, match="max_concurrency, isolated: only for functions"):
        RewardConfig(url="http://a", max_concurrency=1, isolated=False)
    assert RewardConfig(function="a:b", max_concurrency=1, isolated=False).max_concurrency == 1


# -- a process of its own ----------------------------------------------------------------------------------------------


class FakeProcess:
    """A process that "kills" end and "blocks" block; other responses are rewarded with 1."""

    def __init__(self, calls: list[list[str]]) -> None:
        self.calls = calls
        self.ended = asyncio.Event()

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        texts = [rollout.text for rollout in rollouts]
        self.calls.append(texts)
        await asyncio.sleep(0.01)
        if "kills" in texts:
            self.ended.set()
        if "blocks" in texts or self.ended.is_set():
            await self.ended.wait()
            raise EngineLostError("exit code 3")
        return [RewardOutput(reward=1.0, status="ok") for _ in texts]

    def kill(self) -> None:
        self.ended.set()


def test_a_lost_process_costs_the_rollout_at_fault_alone() -> None:
    calls: list[list[str]] = []
    processes: list[FakeProcess] = []

    def create() -> FakeProcess:
        processes.append(FakeProcess(calls))
        return processes[-1]

    async def run() -> list[list[tuple[float | None, str]]]:
        reward = IsolatedFunctionReward(create, 0.2, grace_s=0.1)
        await reward.check()
        groups = [("a", "kills"), ("b", "c"), ("blocks", "d", "blocks", "blocks"), ("e",)]
        outputs = await asyncio.gather(*(reward.score(rollouts(*texts)) for texts in groups))
        more = await reward.score(rollouts("f"))
        await reward.close()
        return [outcomes(group) for group in [*outputs, more]]

    ok, crashed, blocked = (1.0, "ok"), (None, "crashed"), (None, "timeout")
    assert asyncio.run(run()) == [[ok, crashed], [ok, ok], [blocked, ok, blocked, blocked], [ok], [ok]]
    assert all(process.ended.is_set() for process in processes)
    assert len(processes) <= 1 + 1 + 4 + 3, "processes that did not fail are used again"


def test_scoring_again_has_a_time_limit() -> None:
    async def run() -> list[tuple[float | None, str]]:
        reward = IsolatedFunctionReward(lambda: FakeProcess([]), 0.1, grace_s=0.05)
        return outcomes(await reward.score(rollouts(*["blocks"] * 40, "a")))

    began = time.monotonic()
    assert asyncio.run(run()) == [(None, "timeout")] * 41
    assert time.monotonic() - began < 2.0


def test_without_ray_a_function_is_called_in_this_process() -> None:
    from vlgenrm_ray.data.images import ImageLimits

    assert isinstance(RewardConfig(function="json:loads").build(ImageLimits()), FunctionReward)
    assert isolated_function.CRASHED == "crashed"
