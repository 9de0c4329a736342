"""The way to a served judge on the same Ray cluster: its Ray Serve handle, in place of a socket.

    AsyncRemoteJudge("http://judge", transport=ServeHandleTransport("vlgenrm"))

What is carried are the requests and replies of HTTP, as bytes, so that images by hash, limits, tokens and statuses are
those of the address. An application that is not there is as a host that refuses the connection.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from vlgenrm_ray.cluster import ray_compat

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a response."""
_LOOK_S = 5.0
"""Between looks at whether what does not answer is there at all."""
_CARRIED = ("authorization", "content-type")
_UNDERSTOOD = ("content-type", "retry-after")


class ServeHandleTransport(httpx.AsyncBaseTransport):
    """Carries an httpx client's requests to a deployment that has `async answer(path, headers, body) -> Answer`."""

    def __init__(self, name: str) -> None:
        """`name`: "application", whose ingress is asked, or "application:deployment"."""
        self.name = name
        self._application, _, self._deployment = name.partition(":")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx.ConnectError where nobody is there, httpx.ReadTimeout where nobody answers in time."""
        body = await request.aread()
        headers = {name: request.headers[name] for name in _CARRIED if name in request.headers}
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("read")):
                status, told, content = await self._answer(request.url.path, headers, body)
        except TimeoutError:
            raise httpx.ReadTimeout(f"{self.name} did not answer", request=request) from None
        return httpx.Response(
            status, headers={name: told[name] for name in _UNDERSTOOD if name in told}, content=content, request=request
        )

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import RayServeException

        handle = await asyncio.to_thread(self._handle)
        response = handle.answer.remote(path, dict(headers), body)
        answer = asyncio.ensure_future(_awaited(response))
        try:
            # Ray Serve would wait without end for an application that is gone.
            while not (await asyncio.wait([answer], timeout=_LOOK_S))[0]:
                await asyncio.to_thread(self._handle)
            found: Answer = answer.result()
            return found
        except RayTaskError as error:
            return 500, {"content-type": "text/plain"}, str(error.cause).encode()
        except (RayActorError, RayServeException) as error:
            raise httpx.ConnectError(f"{self.name}: {' '.join(str(error).split())[:300]}") from error
        finally:
            if not answer.done():
                response.cancel()
                answer.cancel()

    def _handle(self) -> "DeploymentHandle":
        """Asked for anew each time: that is how one learns that it is gone. Raises httpx.ConnectError."""
        from ray import serve
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        try:
            ingress = serve.get_app_handle(self._application)
            if not self._deployment:
                return ingress
            return serve.get_deployment_handle(self._deployment, self._application)
        except (RayServeException, KeyError) as error:
            told = str(error.args[0]).rstrip(".")
            raise httpx.ConnectError(f"{self.name}: {told}") from error
        except RayActorError as error:
            # Ray Serve was shut down. Its client in this process would remember the controller for ever.
            ray_compat.reset_serve_client()
            raise httpx.ConnectError(f"{self.name}: Ray Serve is gone") from error


async def _awaited(response: "DeploymentResponse") -> Any:
    return await response
