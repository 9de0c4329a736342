"""Calls of a user's function under a deadline. No exception escapes them, and a call that never returns blocks nothing.

A plain function runs in a thread of its own, a coroutine function in an event loop on a thread of its own, never in the
caller's event loop. A plain function may also return an awaitable, such as a decorated coroutine does. The threads are
daemons: one that hangs delays neither its caller, nor other calls, nor the end of the process.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import functools
import inspect
import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)
_NO_LOOP_MESSAGES = ("no running event loop", "no current event loop")


@dataclass(frozen=True, slots=True)
class CallError:
    """An exception that a call raised, in words. The exception itself would hold the frames of the call."""

    name: str
    """Name of the exception's class."""
    detail: str
    """Message of the exception, or another description if it is empty."""
    traceback: str

    @classmethod
    def describe(cls, error: BaseException) -> "CallError":
        """Describe an exception. Call it in the thread of the call: `__str__` of a user's exception may do anything."""
        name = type(error).__name__
        try:
            text = "".join(traceback.format_exception(error))
            message = str(error)
            if not isinstance(error, Exception):
                message = f"the function raised {name}({message})"
            elif not message and (frames := traceback.extract_tb(error.__traceback__)):
                message = f"raised at {frames[-1].filename}:{frames[-1].lineno}"
        except BaseException as other:
            text, message = "", f"its message cannot be read: {type(other).__name__}"
        return cls(name, message, text)


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """The value that a call returned, or the exception that it raised."""

    value: Any = None
    error: CallError | None = None


class FunctionCaller:
    """Calls one function, any number of times concurrently, from any event loop."""

    def __init__(self, function: Callable[..., Any], convert: Callable[[Any], Any]) -> None:
        """Wrap a function.

        Args:
            function: A function, a coroutine function, or any other callable. What it returns may be awaitable.
            convert: Converts the returned value, in the thread of the call. An exception in it becomes the outcome.
        """
        self._function = function
        self._convert = convert
        self._needs_event_loop = is_coroutine_function(function)
        self._event_loop: _EventLoopThread | None = None

    async def call(self, *arguments: Any, deadline: float) -> CallOutcome | None:
        """Call the function.

        Args:
            *arguments: Arguments of the function.
            deadline: Time of the running event loop. A call that has not returned by then is cancelled as far as Python
                permits: coroutines are cancelled, and threads are interrupted once they execute Python code.

        Returns:
            The outcome; None if there was none by the deadline.
        """
        function = functools.partial(self._function, *arguments)
        if not self._needs_event_loop:
            outcome = await _call_in_thread(functools.partial(self._call_plain, function), deadline)
            if outcome is None:
                return None
            if _lacks_event_loop(outcome.error):
                # It needs a running event loop, to create the task or future that it returns.
                self._needs_event_loop = True
            elif inspect.isawaitable(outcome.value):
                awaitable = outcome.value
                return await self._call_in_event_loop(lambda: awaitable, deadline)
            else:
                return outcome
        return await self._call_in_event_loop(function, deadline)

    def close(self) -> None:
        """Stop the event loop of the calls, and cancel the coroutines in it."""
        if self._event_loop is not None:
            self._event_loop.stop()
            self._event_loop = None

    def _call_plain(self, function: Callable[[], Any]) -> Any:
        value = function()
        if isinstance(value, concurrent.futures.Future):
            value = value.result()
        return value if inspect.isawaitable(value) else self._convert(value)

    async def _call_in_event_loop(self, function: Callable[[], Any], deadline: float) -> CallOutcome | None:
        while True:
            event_loop = self._event_loop = self._event_loop or _EventLoopThread()
            call = _LoopCall(event_loop, function, self._convert)
            now = asyncio.get_running_loop().time()
            if (outcome := await call.wait(now + (deadline - now) / 2)) is not None:
                return outcome
            if not call.withdraw():
                # The call is running; another event loop cannot take it over.
                outcome = await call.wait(deadline)
                if outcome is None and call.cancel():
                    self._replace(event_loop)
                return outcome
            # Another call blocks the event loop, so that this one could not start.
            self._replace(event_loop)
            if asyncio.get_running_loop().time() >= deadline:
                return None

    def _replace(self, event_loop: "_EventLoopThread") -> None:
        """Start further calls in a new event loop. Those in the old one may finish."""
        event_loop.stop_when_idle()
        if self._event_loop is event_loop:
            self._event_loop = None


def is_coroutine_function(function: Any) -> bool:
    """Return True for a coroutine function, a partial of one, or an object whose `__call__` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _lacks_event_loop(error: CallError | None) -> bool:
    return error is not None and any(message in error.detail for message in _NO_LOOP_MESSAGES)


# -- plain functions ---------------------------------------------------------------------------------------------------


async def _call_in_thread(function: Callable[[], Any], deadline: float) -> CallOutcome | None:
    """Call a function in a new thread. Return None at the deadline, and interrupt the thread then."""
    waiter = _Waiter()

    def run() -> None:
        try:
            outcome = CallOutcome(value=function())
        # SystemExit and its like, too: what the function raises concerns its own call alone.
        except BaseException as error:
            outcome = CallOutcome(error=CallError.describe(error))
        waiter.set(outcome)

    thread = threading.Thread(target=run, name="reward function", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        return CallOutcome(error=CallError.describe(error))
    try:
        outcome = await waiter.wait(deadline)
    except asyncio.CancelledError:
        _interrupt(thread)
        raise
    if outcome is None:
        _interrupt(thread)
    return outcome


def _interrupt(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread as soon as it executes Python code.

    An endless loop would otherwise take its share of the interpreter until the process ends.
    """
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


class _Waiter:
    """Passes an outcome from another thread to a coroutine of the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[CallOutcome] = self._loop.create_future()

    def set(self, outcome: CallOutcome) -> None:
        # The waiting event loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set, outcome)

    def _set(self, outcome: CallOutcome) -> None:
        if not self._future.done():
            self._future.set_result(outcome)

    async def wait(self, deadline: float) -> CallOutcome | None:
        """Return the outcome; None if there is none by the deadline."""
        timeout = deadline - self._loop.time()
        await asyncio.wait([self._future], timeout=max(timeout, 0.0))
        return self._future.result() if self._future.done() else None


# -- coroutine functions -----------------------------------------------------------------------------------------------


class _EventLoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="reward functions", daemon=True)
        self.num_calls = 0
        """Calls that have not returned. Changed by the thread alone."""
        self._stops_when_idle = False
        self._stopped = False
        self.thread.start()

    def submit(self, function: Callable[[], object]) -> None:
        """Call a function in the thread."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Cancel all coroutines and end the thread, unless a coroutine blocks it."""
        self._stopped = True
        self.submit(self.loop.stop)

    def stop_when_idle(self) -> None:
        """End the thread once its calls have returned."""
        self._stops_when_idle = True
        self.submit(self.finish_call_if_idle)

    def finish_call_if_idle(self) -> None:
        if self._stops_when_idle and not self.num_calls:
            self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopped:
            try:
                self.loop.run_forever()
            # asyncio lets SystemExit and KeyboardInterrupt of a task that the function started itself pass through.
            except BaseException as error:
                _log.warning("a task of a reward function raised %r", error)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        with contextlib.suppress(BaseException):
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


class _LoopCall:
    """One call in an `_EventLoopThread`."""

    def __init__(
        self, event_loop: _EventLoopThread, function: Callable[[], Any], convert: Callable[[Any], Any]
    ) -> None:
        self._event_loop = event_loop
        self._function = function
        self._convert = convert
        self._waiter = _Waiter()
        # Whoever takes the ticket decides: the thread that starts the call, or the caller that withdraws it.
        self._ticket = [None]
        self._task: asyncio.Task[None] | None = None
        event_loop.submit(self._start)

    async def wait(self, deadline: float) -> CallOutcome | None:
        """Return the outcome; None if there is none by the deadline."""
        try:
            return await self._waiter.wait(deadline)
        except asyncio.CancelledError:
            if not self.withdraw():
                self.cancel()
            raise

    def withdraw(self) -> bool:
        """Prevent a call that has not started. Return True if it was prevented."""
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True

    def cancel(self) -> bool:
        """Cancel a call that has started. Return True if it blocks its event loop."""
        task, event_loop = self._task, self._event_loop
        if task is None:
            return False
        event_loop.submit(task.cancel)
        if asyncio.current_task(event_loop.loop) is not task:
            return False
        _interrupt(event_loop.thread)
        return True

    def _start(self) -> None:
        self._task = self._event_loop.loop.create_task(self._run())

    async def _run(self) -> None:
        if not self.withdraw():
            return
        self._event_loop.num_calls += 1
        try:
            value = self._function()
            while inspect.isawaitable(value):
                value = await value
            outcome = CallOutcome(value=self._convert(value))
        except BaseException as error:
            outcome = CallOutcome(error=CallError.describe(error))
        self._waiter.set(outcome)
        self._event_loop.num_calls -= 1
        self._event_loop.finish_call_if_idle()
