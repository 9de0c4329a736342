"""The clients that adapters share: one a process (blocking), one an event loop (asynchronous)."""

import asyncio
import gc
import os
from functools import cache

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, RemoteJudge

URL = "VLGENRM_URL"
TOKEN = "VLGENRM_TOKEN"
RETRIES = 10
"""A service that restarts is waited for, for a minute or two, rather than the training ended."""

_loops: dict[asyncio.AbstractEventLoop, dict[tuple[str, str | None], AsyncRemoteJudge]] = {}
_known: dict[str, set[str]] = {}
"""Address -> images sent there, whatever the event loop: some trainers have a new one every batch."""


def judge(url: str | None = None, token: str | None = None) -> RemoteJudge:
    """The blocking client of this process. Raises ConfigError where neither `url` nor VLGENRM_URL is given."""
    # A forked worker must not share its parent's sockets.
    return _judge(os.getpid(), *_address(url, token))


def async_judge(url: str | None = None, token: str | None = None) -> AsyncRemoteJudge:
    """The asynchronous client of the running event loop. Raises ConfigError as `judge`."""
    address = _address(url, token)
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _forget_closed_loops()
    clients = _loops.setdefault(loop, {})
    if address not in clients:
        clients[address] = AsyncRemoteJudge(
            address[0], token=address[1], retries=RETRIES, known=_known.setdefault(address[0], set())
        )
    return clients[address]


def _forget_closed_loops() -> None:
    """Let go of the clients of loops that are over, and close their sockets.

    A client's connections refer to their loop, so that no weak reference to it would ever end; and each loop of a
    trainer that has a new one every batch would leave its sockets open.
    """
    closed = [loop for loop in list(_loops) if loop.is_closed()]
    for loop in closed:
        _loops.pop(loop, None)
    if closed:
        # Connections and their transports refer to each other, and what is old is collected too seldom.
        gc.collect()


@cache
def _judge(pid: int, url: str, token: str | None) -> RemoteJudge:
    return RemoteJudge(url, token=token, retries=RETRIES)


def _address(url: str | None, token: str | None) -> tuple[str, str | None]:
    found = url or os.environ.get(URL)
    if not found:
        raise ConfigError(f"no served judge named: set {URL}, for instance to http://127.0.0.1:8000")
    return found, token or os.environ.get(TOKEN)
