"""Transport of an httpx client over a Ray Serve handle, for a judge served on the same Ray cluster.

    AsyncRemoteJudge("http://judge", transport=ServeHandleTransport("vlgenrm"))

It carries the HTTP requests and replies as bytes, so image hashes, limits, tokens and statuses are the same as over a
socket. A missing application appears as a refused connection.
"""

import asyncio
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from vlgenrm_ray.cluster import ray_compat

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

RawResponse = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a response."""
_PRESENCE_CHECK_S = 5.0
"""Seconds between checks that an application which does not answer still exists."""
_REQUEST_HEADERS = ("authorization", "content-type")
_RESPONSE_HEADERS = ("content-type", "retry-after")


def present_name(name: str) -> str:
    """Return the present name of a target. The ingress deployment was called `gate`, which is read with a warning."""
    application, colon, deployment = name.partition(":")
    if deployment != "gate":
        return name
    warnings.warn(
        f"handle: '{name}' is now '{application}:ingress'; the old name goes with the next version", FutureWarning, 2
    )
    return f"{application}{colon}ingress"


class ServeHandleTransport(httpx.AsyncBaseTransport):
    """Sends requests to a deployment with a method `async answer(path, headers, body) -> RawResponse`."""

    def __init__(self, name: str) -> None:
        """Store the target: `application` for its ingress, or `application:deployment`."""
        self.name = present_name(name)
        self._application, _, self._deployment = self.name.partition(":")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.ConnectError: There is no such application or deployment.
            httpx.ReadTimeout: No answer within the client's read timeout.
        """
        body = await request.aread()
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("read")):
                status, all_headers, content = await self._call(request.url.path, headers, body)
        except TimeoutError:
            raise httpx.ReadTimeout(f"{self.name} did not answer", request=request) from None
        response_headers = {name: all_headers[name] for name in _RESPONSE_HEADERS if name in all_headers}
        return httpx.Response(status, headers=response_headers, content=content, request=request)

    async def _call(self, path: str, headers: Mapping[str, str], body: bytes) -> RawResponse:
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import RayServeException

        handle = await asyncio.to_thread(self._handle)
        response = handle.answer.remote(path, dict(headers), body)
        call = asyncio.ensure_future(_await_response(response))
        try:
            # Ray Serve itself would wait forever for an application that was deleted.
            while not (await asyncio.wait([call], timeout=_PRESENCE_CHECK_S))[0]:
                await asyncio.to_thread(self._handle)
            raw: RawResponse = call.result()
            return raw
        except RayTaskError as error:
            return 500, {"content-type": "text/plain"}, str(error.cause).encode()
        except (RayActorError, RayServeException) as error:
            raise httpx.ConnectError(f"{self.name}: {' '.join(str(error).split())[:300]}") from error
        finally:
            if not call.done():
                response.cancel()
                call.cancel()

    def _handle(self) -> "DeploymentHandle":
        """Get the handle. Not cached: getting it is how a deleted application is noticed. Raises httpx.ConnectError."""
        from ray import serve
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        try:
            ingress = serve.get_app_handle(self._application)
            if not self._deployment:
                return ingress
            return serve.get_deployment_handle(self._deployment, self._application)
        except (RayServeException, KeyError) as error:
            reason = str(error.args[0]).rstrip(".")
            raise httpx.ConnectError(f"{self.name}: {reason}") from error
        except RayActorError as error:
            # Ray Serve was shut down, and its client in this process still refers to the old controller.
            ray_compat.reset_serve_client()
            raise httpx.ConnectError(f"{self.name}: Ray Serve is gone") from error


async def _await_response(response: "DeploymentResponse") -> Any:
    return await response
