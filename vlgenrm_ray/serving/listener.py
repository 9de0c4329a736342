"""HTTP on an address of this node, from the running event loop: on one machine Serve's proxy is a mere hop."""

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

_KEEP_ALIVE_S = 65
"""Longer than clients keep an idle connection, so that none sends into one that is being closed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int


async def listen(api: "FastAPI", address: Address) -> "asyncio.Task[None]":
    """Serve `api` until the task is cancelled. Raises OSError for an address that cannot be had."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            api,
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
    )
    # Bound here, as uvicorn itself would end the process if that failed.
    serving = socket.create_server((address.host, address.port), backlog=2048)
    return asyncio.get_running_loop().create_task(server.serve(sockets=[serving]))
