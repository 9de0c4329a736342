"""Permanent faults of an item are 4xx, transient ones 503, and no fault of one item costs another its reward."""

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from fake_gateway import FakeGateway
from fake_service import FakeService
from image_corpus import encode, png
from PIL import Image
from serving_examples import item, request, service

from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
from vlgenrm_ray.judge.wire import MAX_TEXT, Status, status_of_reason
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.gateways import llama_factory, openai_chat, slime
from vlgenrm_ray.serving.service import Service, build_reply

TRANSIENT = {Status.TIMEOUT, Status.OVERLOADED, Status.INTERNAL}
"""Statuses of items that may have a reward if they are sent again."""
ENGINE_FAILURES = {DropReason.ENGINE_ERROR}
"""The drop reasons that are no fault of the row."""
_JSON = {"content-type": "application/json"}
STRIP = encode(Image.new("RGB", (4000, 10)), "PNG")
TEXT = "a" * (MAX_TEXT + 1)


def post(served: Service, path: str, body: Any = None, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        app = build_api(served, ready=lambda: True, swap_model=None)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge") as client:
            # Escaped, as JSON can spell half of a surrogate pair and UTF-8 cannot.
            content = {} if body is None else {"content": json.dumps(body), "headers": _JSON}
            return await client.post(path, **content, **options)

    return asyncio.run(send())


@pytest.mark.parametrize("status", Status)
def test_a_status_is_permanent_or_transient_at_every_gateway(status: Status) -> None:
    expected = 200 if status is Status.OK else 503 if status in TRANSIENT else 422
    assert status.http_status == expected
    if status is Status.OK:
        return
    response = f"fails:{status.value}"
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": response}]
    transcript = f"<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
    for router, path, body in (
        (slime.router, "/rm", {"prompt": "What is it?", "response": response}),
        (openai_chat.router, "/v1/chat/completions", {"messages": turns}),
        (llama_factory.router, "/v1/score/evaluation", {"messages": [transcript]}),
    ):
        reply = FakeGateway(router).post(path, body)
        assert reply.status_code == expected, path
        assert ("retry-after" in reply.headers) == (expected == 503), path
        assert status.value in reply.text, path


@pytest.mark.parametrize("reason", DropReason)
def test_a_drop_reason_is_permanent_unless_the_engine_failed(reason: DropReason) -> None:
    status = status_of_reason(reason)
    assert status is not Status.OK
    assert (status in TRANSIENT) == (reason in {*ENGINE_FAILURES, DropReason.IMAGE_UNREACHABLE})
    judgement = Judgement(id="q", reward=None, status=reason.value, detail="said by the engine")
    reply = build_reply(judgement, "v1", queued_s=0.0)
    assert (reply.status, reply.reward) == (status, None)
    assert ("image" in reason) == (status in (Status.BAD_IMAGE, Status.TOO_LARGE) and "prompt" not in reason) or (
        reason is DropReason.IMAGE_UNREACHABLE
    )


def test_a_batch_with_a_permanent_failure_is_not_sent_again() -> None:
    for responses, expected in (
        (["1", "fails:timeout", "fails:overloaded"], 503),
        (["1", "fails:timeout", "fails:bad_image"], 422),
        (["fails:bad_image", "fails:internal"], 422),
    ):
        texts = [f"<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n{r}<|im_end|>\n" for r in responses]
        reply = FakeGateway(llama_factory.router).post("/v1/score/evaluation", {"messages": texts})
        assert reply.status_code == expected, responses
        assert ("bad_image" in reply.text) == (expected == 422), "the failure that stays is named"


# -- images that no model takes --------------------------------------------------------------------------------------


def test_an_image_that_is_too_narrow_is_a_bad_image_everywhere() -> None:
    served = service()
    url = "data:image/png;base64," + base64.b64encode(STRIP).decode()
    (reply,) = asyncio.run(served.score(request(item(image=url)))).items
    assert (reply.status, reply.detail) == (Status.BAD_IMAGE, "image: 4000x10, aspect ratio 400.00, limit 200")
    upload = post(served, "/v1/images", content=STRIP)
    assert (upload.status_code, "aspect ratio 400.00" in upload.json()["detail"]) == (422, True)
    label = {"question": "What is it?", "images": [url]}
    gateway = post(served, "/rm", {"prompt": "Q?", "response": "A.", "label": label})
    assert (gateway.status_code, "aspect ratio 400.00" in gateway.text) == (422, True)
    assert "retry-after" not in gateway.headers


# -- one item of a batch ---------------------------------------------------------------------------------------------

GOOD = {"question": "What is it?", "response": "A star."}
BAD_ITEMS = {
    "a long response": (GOOD | {"response": TEXT}, "too_large", "response"),
    "a long question": (GOOD | {"question": TEXT}, "too_large", "question"),
    "a long reference": (GOOD | {"reference": TEXT}, "too_large", "reference"),
    "many images": (GOOD | {"images": ["sha256:1"] * 17}, "too_large", "images"),
    "many turns": ({"response": "A.", "messages": [{"role": "user", "content": "Q?"}] * 65}, "too_large", "messages"),
    "half an emoji": (GOOD | {"response": "\ud83d"}, "bad_request", "response"),
    "half an emoji in a turn": (
        {"response": "A.", "messages": [{"role": "user", "content": "\ud83d"}]},
        "bad_request",
        "messages[0].content",
    ),
    "a turn without a role": ({"response": "A.", "messages": [{"content": "Q?"}]}, "bad_request", "messages[0]"),
    "an unknown part": (
        {"response": "A.", "messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        "bad_request",
        "messages[0].content[0]",
    ),
    "no response": ({"question": "Q?"}, "bad_request", "response"),
    "a response that is a number": (GOOD | {"response": 7}, "bad_request", "response"),
    "no question": ({"response": "A."}, "bad_request", "give exactly one of"),
    "an unknown field": (GOOD | {"colour": 1}, "bad_request", "colour"),
    "an unknown mode": (GOOD | {"mode": "guess"}, "bad_request", "mode"),
    "not an object": (7, "bad_request", ""),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_bad_item_costs_only_itself(name: str) -> None:
    bad, status, says = BAD_ITEMS[name]
    reply = post(service(), "/v1/score", {"items": [GOOD, bad, GOOD]})
    assert reply.status_code == 200
    first, second, third = reply.json()["items"]
    assert (first["status"], third["status"]) == ("ok", "ok")
    assert (second["status"], second["reward"]) == (status, None)
    assert second["detail"].startswith(says)


def test_a_request_of_malformed_items_only_is_refused() -> None:
    for body in ([{"question": "Q?"}], [{"question": "Q?"}, 7]):
        reply = post(service(), "/v1/score", {"items": body})
        assert (reply.status_code, reply.json()["detail"]) == (422, "items.0.response: Field required")
    alone = post(service(), "/v1/score", {"items": [GOOD | {"response": TEXT}]})
    assert alone.json()["items"][0]["status"] == "too_large", "a large text is reported as a large image is"


def test_a_bad_response_of_a_ranking_or_comparison_costs_only_itself() -> None:
    for bad, status in ((TEXT, "too_large"), ("\ud83d", "bad_request")):
        ranking = post(service(), "/v1/rank", {"item": GOOD, "responses": ["A star.", bad, "A circle."]}).json()
        assert [reply["status"] for reply in ranking["items"]] == ["ok", status, "ok"]
        assert ranking["order"][-1] == 1
        comparison = post(service(), "/v1/compare", {"item": GOOD, "first": "A star.", "second": bad}).json()
        assert (comparison["better"], comparison["second"]["status"]) == (None, status)


def test_clients_report_a_text_that_cannot_be_sent_for_its_own_item() -> None:
    judge = RemoteJudge("http://service", transport=httpx.MockTransport(FakeService()), retries=0)
    turns = [{"role": "user", "content": "half \ud83d"}]
    inputs = [
        ScoreInput(question="Q?", response="\ud83d"),
        ScoreInput(question="\ud83d", response="1"),
        ScoreInput(messages=turns, response="1"),
        ScoreInput(messages=[{"role": "user", "content": [{"type": "audio"}]}], response="1"),
        ScoreInput(question="Q?", response="1"),
    ]
    replies = judge.score(inputs)
    assert [reply.status for reply in replies] == [Status.BAD_REQUEST] * 4 + [Status.OK]
    assert all(reply.detail for reply in replies[:4])


def test_details_never_show_an_address_in_memory() -> None:
    served = service()
    head = b"\x89PNG\r\n\x1a\nnothing"
    broken = [head, png_of_no_size(), b"GIF89a", b"RIFF....WEBP", b"BM" + bytes(60), b"\xff\xd8\xff"]
    references = [base64.b64encode(data).decode() for data in broken]
    replies = asyncio.run(served.score(request(*(item(image=reference) for reference in references)))).items
    for data, reply in zip(broken, replies, strict=True):
        assert reply.status is Status.BAD_IMAGE, data
        assert "object at 0x" not in reply.detail
        assert reply.detail.removeprefix("image: ")


def png_of_no_size() -> bytes:
    import numpy as np

    data = png(np.zeros((1, 1, 1), np.uint8), 8, 0)
    return data.replace(b"\0\0\0\1\0\0\0\1", bytes(8))


def test_an_image_error_reads_as_its_detail() -> None:
    error = ImageError(DropReason.IMAGE_MISSING, "a.png: no such file")
    assert str(error) == "a.png: no such file"
    assert ImageLimits().max_aspect_ratio == 200.0
