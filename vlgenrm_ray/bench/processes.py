"""What a bench measures runs in processes of their own, which end with this one."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from vlgenrm_ray.engines.environment import end_with_this_process
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.serving.auth import API_TOKEN, OPERATOR_TOKEN

_STOP_S = 60.0
_TAIL = 3000


@dataclass(frozen=True, slots=True)
class Started:
    """A process, and what it says."""

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def tail(self) -> str:
        """The last it said."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-_TAIL:]


@contextmanager
def started(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[Started]:
    """A command with `variables` in its environment, ended afterwards."""
    # A server is open to the client that measures it.
    inherited = {name: value for name, value in os.environ.items() if name not in (API_TOKEN, OPERATOR_TOKEN)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=inherited | {"HF_HUB_OFFLINE": "1"} | dict(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # All of its group, should this process be killed: one left behind takes the cores from what comes next.
        watch = end_with_this_process([-process.pid])
        try:
            yield Started(process, log)
        finally:
            _end(process)
            watch.communicate()


def finish(command: Sequence[str], variables: Mapping[str, str], *, limit_s: float) -> None:
    """Run a command to its end. Raises StageError, with the last it said, where that is not 0 or takes too long."""
    with started(command, variables) as one:
        end = time.monotonic() + limit_s
        while one.process.poll() is None and time.monotonic() < end:
            time.sleep(0.25)
        if one.process.returncode != 0:
            how = f"took more than {limit_s:g} s" if one.process.returncode is None else "failed"
            raise StageError(f"{' '.join(command[:4])} ... {how}:\n{one.tail()}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """By its own means if it has any left, else by force."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
