"""Clients that all adapters share: one blocking client per process, one asynchronous client per event loop.

The service is asked for its model before the first client is used (`check_service`), so that a wrong address or token
is reported at once, and not after the retries of the first reward. Adapters that are created before the trainer loads
its models ask then. VLGENRM_PROBE=0 switches this off, for a service that starts later.
"""

import asyncio
import gc
import os
from functools import cache

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, RemoteJudge

URL_VARIABLE = "VLGENRM_URL"
TOKEN_VARIABLE = "VLGENRM_TOKEN"
PROBE_VARIABLE = "VLGENRM_PROBE"
PROBE_S = 20.0
"""Seconds in which a service that cannot be connected to is tried again before it is reported."""
RETRIES = 10
"""Retries of a call: a minute or two, so that a training outlasts a restart of the service."""

_clients: dict[asyncio.AbstractEventLoop, dict[tuple[str, str | None], AsyncRemoteJudge]] = {}
_checked: set[tuple[str, str | None]] = set()
"""Addresses and tokens for which the service has answered."""
_uploaded: dict[str, set[str]] = {}
"""Address -> references of uploaded images, shared by all event loops: some trainers create a loop per batch."""


def check_service(url: str | None = None, token: str | None = None) -> None:
    """Ask the service for its model, once per process.

    Args:
        url: Address of the service; default: the environment variable VLGENRM_URL.
        token: Bearer token; default: VLGENRM_TOKEN, if set.

    Raises:
        ConfigError: Neither `url` nor VLGENRM_URL is given.
        RemoteError: There is no judge at the address, or it refuses the token.
    """
    if os.environ.get(PROBE_VARIABLE) == "0" or (address := _address(url, token)) in _checked:
        return
    with RemoteJudge(address[0], token=address[1]) as judge:
        judge.check(patience_s=PROBE_S)
    _checked.add(address)


def judge_client(url: str | None = None, token: str | None = None, *, check: bool = True) -> RemoteJudge:
    """Return the blocking client of this process; arguments and errors as in `check_service`.

    Args:
        url: See `check_service`.
        token: See `check_service`.
        check: Call `check_service` first.
    """
    if check:
        check_service(url, token)
    # The process id is part of the key: a forked worker must not share its parent's sockets.
    return _cached_client(os.getpid(), *_address(url, token))


def async_judge_client(url: str | None = None, token: str | None = None) -> AsyncRemoteJudge:
    """Return the asynchronous client of the running event loop; arguments and errors as in `check_service`."""
    check_service(url, token)
    address = _address(url, token)
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _discard_closed_loops()
    clients = _clients.setdefault(loop, {})
    if address not in clients:
        clients[address] = AsyncRemoteJudge(
            address[0], token=address[1], retries=RETRIES, uploaded=_uploaded.setdefault(address[0], set())
        )
    return clients[address]


def _discard_closed_loops() -> None:
    """Drop the clients of closed event loops and close their sockets.

    A trainer with a new loop per batch would otherwise leave sockets open. Weak references do not solve this, because
    a client's connections refer to their loop.
    """
    closed = [loop for loop in list(_clients) if loop.is_closed()]
    for loop in closed:
        _clients.pop(loop, None)
    if closed:
        # Connections and transports form cycles, and the collector visits old generations too rarely.
        gc.collect()


@cache
def _cached_client(pid: int, url: str, token: str | None) -> RemoteJudge:
    return RemoteJudge(url, token=token, retries=RETRIES)


def _address(url: str | None, token: str | None) -> tuple[str, str | None]:
    address = url or os.environ.get(URL_VARIABLE)
    if not address:
        raise ConfigError(f"no served judge named: set {URL_VARIABLE}, for instance to http://127.0.0.1:8000")
    return address, token or os.environ.get(TOKEN_VARIABLE)
