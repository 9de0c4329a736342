"""A fake served judge over the wire of `judge/wire.py`: the response's text states its reward."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from vlgenrm_ray.judge.protocol import image_references
from vlgenrm_ray.judge.wire import InvalidItem, ScoreItem, ScoreReply, ScoreRequest, ScoreResponse, Status, WireCritique

Answer = Callable[[httpx.Request], httpx.Response | None]


def scripted(item: ScoreItem | InvalidItem) -> ScoreReply:
    """Response "0.25" has that reward; "fails:timeout" has that status."""
    if isinstance(item, InvalidItem):
        return ScoreReply(reward=None, status=item.status, detail=item.detail)
    if item.response.startswith("fails:"):
        return ScoreReply(reward=None, status=Status(item.response[6:]), detail="as scripted")
    reward = float(item.response)
    critique = WireCritique(text=f"Claim: {item.response}.\nVerdict: {'Yes' if reward > 0.5 else 'No'}", p_yes=reward)
    return ScoreReply(
        reward=reward,
        status=Status.OK,
        critiques=[critique] * (item.num_critiques or 1),
        num_asked=item.num_critiques or 1,
        verdict_mass=0.9,
        model_version="scripted",
    )


async def score(request: ScoreRequest) -> ScoreResponse:
    """Score a request with `scripted`, for gateways."""
    return ScoreResponse(items=[scripted(item) for item in request.items])


class FakeService:
    """The handler of an `httpx.MockTransport`. Records images, items and requests."""

    def __init__(self, *first: Answer) -> None:
        """`first`: answers to the first calls, one each; None handles the call as usual."""
        self.first = list(first)
        self.images: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.items: list[ScoreItem] = []
        self.model_answer: tuple[int, str] = (200, '{"version": "scripted"}')
        """Status and body of `GET /v1/model`, which is not recorded."""
        self.requests: list[httpx.Request] = []
        self._lock = threading.Lock()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.requests.append(request)
            if self.first and (answer := self.first.pop(0)(request)) is not None:
                return answer
            if request.url.path == "/v1/images":
                return self._keep(request.content)
            score_request = ScoreRequest.model_validate_json(request.content)
            self.items.extend(score_request.items)
            replies = ScoreResponse(items=[self._reply(item) for item in score_request.items])
            return httpx.Response(200, content=replies.model_dump_json())

    def _keep(self, data: bytes) -> httpx.Response:
        if not data.startswith(b"\x89PNG"):
            return httpx.Response(422, json={"detail": "image: cannot be decoded"})
        digest = hashlib.sha256(data).hexdigest()
        self.uploads[digest] += 1
        self.images[f"sha256:{digest}"] = data
        return httpx.Response(200, json={"sha256": digest})

    def _reply(self, item: ScoreItem) -> ScoreReply:
        for name in image_references(item):
            if name not in self.images:
                return ScoreReply(reward=None, status=Status.BAD_IMAGE, detail=f"unknown image {name}: send it first")
        return scripted(item)


@contextmanager
def listening(service: FakeService, port: int = 0) -> Iterator[str]:
    """Serve on a real socket and yield the URL. Port 0: any free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = service.model_answer
            self._send(status, body.encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = service(
                httpx.Request("POST", f"http://service{self.path}", headers=dict(self.headers), content=body)
            )
            self._send(answer.status_code, answer.content)

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def refuse(status: int, detail: str = "as scripted", **headers: str) -> Answer:
    """Return an answer with an HTTP status."""
    return lambda _: httpx.Response(status, content=json.dumps({"detail": detail}), headers=headers)


class FakeLengthService(FakeService):
    """Accepts images that were not uploaded; shorter responses have higher rewards."""

    def _reply(self, item: ScoreItem) -> ScoreReply:
        return scripted(item.model_copy(update={"response": f"{1 / (1 + len(item.response))}"}))


class FakeInlineService(FakeService):
    """Accepts images that were not uploaded."""

    def _reply(self, item: ScoreItem) -> ScoreReply:
        return scripted(item)
