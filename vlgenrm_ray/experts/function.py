"""The function expert: a Python function of the user's as an expert, in a process of its own.

    def verify(image: PIL.Image.Image, claim: Claim) -> bool | float | None: ...

True supports the claim, False contradicts it, None leaves it unknown; a number is the probability that it is true. A
function that hangs, crashes or raises costs its claim alone: the process is ended and another one is started.
"""

import importlib
import logging
import math
import multiprocessing
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.records import Claim, ClaimKind, Finding, Truth

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


_START_S = 120.0
"""Seconds that the process may take to start, the import of the user's module included."""

_log = logging.getLogger(__name__)


class FunctionExpert:
    """Calls a function for every claim of some kinds."""

    def __init__(
        self,
        config: ExpertPipelineConfig,
        *,
        function: str,
        kinds: Sequence[str] = tuple(ClaimKind),
        sure: float = 0.9,
        timeout_s: float = 10.0,
    ) -> None:
        """Start the process and import the function in it.

        Args:
            config: Settings of all experts.
            function: Import path `package.module:function`.
            kinds: Kinds of claims that it is called for.
            sure: Probability from which a number supports a claim; 1 - `sure` and less contradicts it.
            timeout_s: Seconds of one call.

        Raises:
            ConfigError: The function cannot be imported, or a setting is out of range.
        """
        known = {kind.value for kind in ClaimKind}
        if unknown := sorted(set(map(str, kinds)) - known):
            raise ConfigError(f"function.kinds: {unknown[0]!r} is unknown; choose from {', '.join(sorted(known))}")
        if not 0.5 < sure <= 1 or timeout_s <= 0:
            raise ConfigError(f"function: sure {sure} must be in (0.5, 1], timeout_s {timeout_s} above 0")
        self._function = function
        self._kinds = frozenset(ClaimKind(kind) for kind in kinds)
        self._sure = sure
        self._timeout_s = timeout_s
        self._logged: set[str] = set()
        self._process = _VerifierProcess(function)

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Add findings on claims of `kinds`. See `Expert`."""
        return [replace(task, findings=(*task.findings, *self._findings(task))) for task in tasks]

    def close(self) -> None:
        """End the process."""
        self._process.kill()

    def _findings(self, task: ImageTask) -> list[Finding]:
        claims = dict.fromkeys(c for of_text in task.claims for c in of_text if c.kind in self._kinds and not c.hedged)
        return [self._decide(claim, self._call(task, claim)) for claim in claims]

    def _call(self, task: ImageTask, claim: Claim) -> object:
        try:
            return self._process.call(task, claim, self._timeout_s)
        except _VerifierError as error:
            if error.ended_process:
                self._process.kill()
                self._process = _VerifierProcess(self._function)
            if (reason := str(error).partition(":")[0]) not in self._logged:
                self._logged.add(reason)
                _log.warning("%s: %s for %r; its claim stays unknown", self._function, error, claim.text)
            return None

    def _decide(self, claim: Claim, value: object) -> Finding:
        truth, score = Truth.UNKNOWN, 0.0
        if isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1:
            score = max(float(value), 1 - float(value))
            if score >= self._sure:
                truth = Truth.SUPPORTED if value > 0.5 else Truth.CONTRADICTED
        return Finding(claim=claim, truth=truth, expert="function", score=score if truth is not Truth.UNKNOWN else 0.0)


class _VerifierError(Exception):
    """A call without a result."""

    def __init__(self, message: str, *, ended_process: bool) -> None:
        super().__init__(message)
        self.ended_process = ended_process


class _VerifierProcess:
    """A child process with the function."""

    def __init__(self, function: str) -> None:
        """Start it and wait for the import. Raises ConfigError if the function cannot be imported."""
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(function, child), daemon=True)
        self._process.start()
        child.close()
        kind, detail = self._receive(_START_S, "start")
        if kind != "ready":
            self.kill()
            raise ConfigError(f"function {function!r}: {detail}; give module:function of an importable module")

    def call(self, task: ImageTask, claim: Claim, timeout_s: float) -> object:
        """Return what the function returns for a claim. Raises _VerifierError if it returns nothing."""
        self._connection.send((task.width, task.height, task.pixels, claim))
        kind, value = self._receive(timeout_s, "call")
        if kind == "error":
            raise _VerifierError(str(value), ended_process=False)
        return value

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self, timeout_s: float, purpose: str) -> tuple[str, Any]:
        try:
            if not self._connection.poll(timeout_s):
                raise _VerifierError(f"timeout: no end of the {purpose} within {timeout_s:g} s", ended_process=True)
            message: tuple[str, Any] = self._connection.recv()
            return message
        except (EOFError, OSError) as error:
            raise _VerifierError(f"crashed: the process ended during the {purpose}", ended_process=True) from error


def _serve(name: str, connection: "Connection") -> None:
    """Run in the child: import the function, then answer calls until the connection is closed."""
    import PIL.Image

    try:
        module, _, attribute = name.partition(":")
        function: Callable[[PIL.Image.Image, Claim], object] = operator.attrgetter(attribute)(
            importlib.import_module(module)
        )
    # The user's module may raise anything while it is imported.
    except BaseException as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", ""))
    while True:
        try:
            width, height, pixels, claim = connection.recv()
        except EOFError:
            return
        image = PIL.Image.frombytes("RGB", (width, height), pixels)
        try:
            value = function(image, claim)
            # Only plain values leave the process; scalars of numpy and torch have `item`.
            value = value.item() if hasattr(value, "item") else value
            is_valid = value is None or isinstance(value, bool | int | float)
            answer = ("value", value) if is_valid else ("error", f"wrong type: it returned {type(value).__name__}")
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        connection.send(answer)
