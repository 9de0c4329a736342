"""Processes that a bench measures; each ends with this process."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from vlgenrm_ray.engines.environment import kill_on_exit
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.serving.auth import API_TOKEN, OPERATOR_TOKEN

_STOP_TIMEOUT_S = 60.0
_TAIL_LENGTH = 3000


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process with its output."""

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def tail(self) -> str:
        """Return the end of the output."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-_TAIL_LENGTH:]


@contextmanager
def running_process(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[RunningProcess]:
    """Run a command with `variables` added to its environment; terminate it on exit."""
    # Without tokens a server accepts the requests of the load generator.
    inherited = {name: value for name, value in os.environ.items() if name not in (API_TOKEN, OPERATOR_TOKEN)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=inherited | {"HF_HUB_OFFLINE": "1"} | dict(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # The whole process group ends if this process is killed: a survivor would take cores from the next measurement.
        watchdog = kill_on_exit([-process.pid])
        try:
            yield RunningProcess(process, log)
        finally:
            _terminate(process)
            watchdog.communicate()


def run_to_end(command: Sequence[str], variables: Mapping[str, str], *, timeout_s: float) -> None:
    """Run a command and wait for its end.

    Raises:
        StageError: The exit status is not 0, or the command runs longer than `timeout_s`. Holds the end of the output.
    """
    with running_process(command, variables) as running:
        deadline = time.monotonic() + timeout_s
        while running.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.25)
        if running.process.returncode != 0:
            reason = f"took more than {timeout_s:g} s" if running.process.returncode is None else "failed"
            raise StageError(f"{' '.join(command[:4])} ... {reason}:\n{running.tail()}")


def _terminate(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM, wait, then kill what is left of the process group."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
