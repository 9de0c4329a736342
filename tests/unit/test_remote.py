"""Clients of a served judge: each image is uploaded once, and failures are retried or raised, never scored as 0."""

import asyncio
import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fake_service import FakeService, listening, refuse
from hostile_rows import ADDRESSES, special_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError, InputError, RemoteError
from vlgenrm_ray.judge import protocol
from vlgenrm_ray.judge.remote import AsyncRemoteJudge, RemoteJudge, ScoreInput
from vlgenrm_ray.judge.wire import MAX_ITEMS, MAX_TEXT, Status


def draw_image(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (16, 16), (shade, 0, 0))


def png(shade: int = 0) -> bytes:
    target = io.BytesIO()
    draw_image(shade).save(target, "PNG", compress_level=1)
    return target.getvalue()


def client(service: FakeService, **over: object) -> RemoteJudge:
    return RemoteJudge("http://judge", transport=httpx.MockTransport(service), **over)


def item(response: str = "0.5", **over: object) -> ScoreInput:
    return ScoreInput(**{"question": "What is it?", "response": response, **over})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    recorded: list[float] = []
    monkeypatch.setattr("vlgenrm_ray.judge.remote.time.sleep", recorded.append)
    return recorded


def test_replies_keep_the_order_of_the_inputs() -> None:
    replies = client(FakeService()).score([item("0.25"), item("fails:unreadable_verdict"), item("1")])
    assert [r.reward for r in replies] == [0.25, None, 1.0]
    assert replies[1].status is Status.UNREADABLE_VERDICT
    assert replies[0].critiques[0].p_yes == 0.25


@given(shades=st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5))
@settings(max_examples=40)
def test_each_image_is_uploaded_once(shades: list[list[int]]) -> None:
    service = FakeService()
    with client(service) as judge:
        for call in shades:
            inputs = [item(str(shade / 4), image=draw_image(shade)) for shade in call]
            assert [r.reward for r in judge.score(inputs)] == [shade / 4 for shade in call]
    assert len(service.uploads) == len({shade for call in shades for shade in call})
    assert set(service.uploads.values()) <= {1}


def test_all_forms_of_one_image_are_one_upload(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    forms = [draw_image(), png(), path, str(path), f"file://{path}", url, {"bytes": png(), "path": None}]
    service = FakeService()
    replies = client(service).score([item(image=form) for form in forms] + [item(images=[png(), png(1)])])
    assert {r.status for r in replies} == {Status.OK}
    assert sorted(service.uploads.values()) == [1, 1]


def test_images_in_a_conversation_become_references() -> None:
    service = FakeService()
    content = [{"type": "image", "image": draw_image()}, {"type": "text", "text": "What is it?"}]
    (reply,) = client(service).score([ScoreInput(messages=[{"role": "user", "content": content}], response="1")])
    assert reply.reward == 1.0
    (part, text) = service.items[0].messages[0]["content"]
    assert part["image_url"]["url"] in service.images
    assert text == {"type": "text", "text": "What is it?"}


def test_an_image_the_server_lost_is_uploaded_again() -> None:
    service = FakeService()
    with client(service) as judge:
        judge.score([item(image=png())])
        service.images.clear()
        assert [r.reward for r in judge.score([item(image=png()), item("0.1")])] == [0.5, 0.1]
    assert list(service.uploads.values()) == [2]


def test_a_reference_without_its_image_stays_unknown() -> None:
    (reply,) = client(FakeService()).score([item(image="sha256:" + "0" * 64)])
    assert (reply.reward, reply.status) == (None, Status.BAD_IMAGE)


def test_an_unreadable_image_affects_its_own_item_only(tmp_path: Path) -> None:
    bad = [str(tmp_path / "none.png"), b"no image", "data:image/png;base64,%", "http://x/a.png", {"path": None}, 7]
    service = FakeService()
    replies = client(service).score([*(item(image=b) for b in bad), item("0.75", image=png())])
    assert [r.reward for r in replies] == [None] * len(bad) + [0.75]
    assert {r.status for r in replies[:-1]} == {Status.BAD_IMAGE}
    (reply,) = client(service, limits=ImageLimits(max_bytes=8)).score([item(image=png())])
    assert reply.status is Status.TOO_LARGE


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_cannot_be_opened_affects_its_own_item_only(address: str) -> None:
    bad = [address, Path(address), {"path": address}, {"bytes": address}]
    replies = client(FakeService()).score([*(item(image=b) for b in bad), item("0.75", image=png())])
    assert [r.reward for r in replies] == [None] * len(bad) + [0.75]
    assert {r.status for r in replies[:-1]} <= {Status.BAD_IMAGE, Status.INTERNAL}
    assert all(len(r.detail) < 1000 for r in replies)


def test_an_object_that_is_no_image_affects_its_own_item_only(tmp_path: Path) -> None:
    closed, cut_off = Image.open(io.BytesIO(png())), Image.open(io.BytesIO(png()[:45]))
    closed.close()
    (pipe, *_) = special_files(tmp_path)
    bad = [closed, cut_off, pipe, 7, object(), {"bytes": 10**12}, {"bytes": [1, 2]}, {}, [png()], b"", "", draw_image]
    replies = client(FakeService()).score([*(item(image=b) for b in bad), item("0.75", image=bytearray(png()))])
    assert [r.reward for r in replies] == [None] * len(bad) + [0.75]
    assert {r.status for r in replies[:-1]} == {Status.BAD_IMAGE}
    assert not any("object at 0x" in r.detail for r in replies)


def test_a_too_long_text_affects_its_own_item_only() -> None:
    replies = client(FakeService()).score([item("1" * (MAX_TEXT + 1)), item("1")])
    assert [r.status for r in replies] == [Status.TOO_LARGE, Status.OK]


@pytest.mark.parametrize("over", [{"question": None}, {"messages": []}, {"mode": "guess"}, {"num_critiques": 0}])
def test_an_invalid_input_raises_an_input_error(over: dict[str, object]) -> None:
    with pytest.raises(InputError):
        client(FakeService()).score([item(**over)])


def test_many_items_are_split_into_several_requests() -> None:
    service = FakeService()
    replies = client(service).score([item(str(i % 5)) for i in range(MAX_ITEMS + 3)])
    assert [r.reward for r in replies] == [float(i % 5) for i in range(MAX_ITEMS + 3)]
    assert len(service.requests) == 2


def test_no_items_make_no_request() -> None:
    service = FakeService()
    assert client(service).score([]) == []
    assert service.requests == []


def connection_refused(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


def read_timeout(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("nothing")


def test_pauses_grow_beyond_a_constant_retry_after(pauses: list[float]) -> None:
    busy = [refuse(503, **{"Retry-After": "1"}) for _ in range(10)]
    assert client(FakeService(*busy), retries=10).score([item("1")])[0].reward == 1.0
    assert all(1.0 <= pause <= 30.0 for pause in pauses)
    assert sum(pauses) > 60.0, "a minute or two, see adapters/clients.py"


def test_a_busy_or_restarting_service_is_retried(pauses: list[float]) -> None:
    service = FakeService(connection_refused, refuse(503, **{"Retry-After": "7"}), refuse(503), refuse(502))
    assert client(service).score([item("1")])[0].reward == 1.0
    assert pauses[1] == 7.0
    assert all(0 < pause <= 2.0 for pause in (pauses[0], *pauses[2:]))


def test_overloaded_items_are_retried() -> None:
    busy = '{"items": [{"reward": null, "status": "overloaded"}, {"reward": 0.5, "status": "ok"}]}'
    service = FakeService(lambda _: httpx.Response(200, content=busy))
    assert [r.reward for r in client(service).score([item("1"), item()])] == [1.0, 0.5]
    assert len(service.items) == 1
    always = FakeService()
    (reply,) = client(always, retries=2).score([item("fails:overloaded")])
    assert (reply.reward, reply.status, len(always.items)) == (None, Status.OVERLOADED, 3)


def test_an_unreachable_service_is_named_after_all_attempts() -> None:
    service = FakeService(*[connection_refused] * 3)
    with pytest.raises(RemoteError, match=r"http://judge/v1/score: ConnectError: refused \(3 attempts\)"):
        client(service, retries=2).score([item()])
    assert len(service.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 307])
def test_a_refusal_is_never_retried(status: int) -> None:
    service = FakeService(refuse(status, "items.0.response: too long"))
    with pytest.raises(RemoteError, match=rf"{status} .*items\.0\.response"):
        client(service).score([item()])
    assert len(service.requests) == 1


def test_an_unanswered_request_is_never_retried() -> None:
    service = FakeService(read_timeout)
    with pytest.raises(RemoteError, match="timeout_s"):
        client(service).score([item()])
    assert len(service.requests) == 1


@pytest.mark.parametrize("body", ["<html>", "{}", '{"items": []}', '{"items": [{"reward": null, "status": "ok"}]}'])
def test_an_answer_of_another_protocol_is_an_error(body: str) -> None:
    with pytest.raises(RemoteError):
        client(FakeService(lambda _: httpx.Response(200, content=body))).score([item()])


def test_items_after_the_deadline_have_a_timeout_status(pauses: list[float]) -> None:
    for answer in (read_timeout, refuse(503, **{"Retry-After": "20"})):
        (reply,) = client(FakeService(answer)).score([item()], deadline_s=5)
        assert (reply.reward, reply.status) == (None, Status.TIMEOUT)
    (reply,) = client(FakeService(read_timeout)).score([item(image=png())], deadline_s=5)
    assert reply.status is Status.TIMEOUT
    assert pauses == []
    service = FakeService()
    client(service).score([item()], deadline_s=5)
    assert b'"deadline_s":4.9' in service.requests[0].content


def test_compare_and_rank_order_by_reward() -> None:
    judge = client(FakeService())
    compared = judge.compare(item(), "0.25", "0.75")
    assert (compared.better, compared.margin) == ("second", -0.5)
    assert judge.compare(item(), "1", "1").better == "tie"
    assert judge.compare(item(), "0", "fails:timeout").better is None
    ranked = judge.rank(item(), ["0.25", "fails:timeout", "0.75", "0"])
    assert (ranked.order, ranked.best) == ([2, 0, 3, 1], 2)
    assert judge.rank(item(), ["fails:internal"]).best is None


def test_the_token_is_sent_and_never_shown() -> None:
    service = FakeService()
    judge = client(service, token="secret")
    judge.score([item()])
    assert service.requests[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(judge)
    service.first.append(refuse(401, "no"))
    with pytest.raises(RemoteError, match="give the service's token") as error:
        judge.score([item()])
    assert "secret" not in str(error.value)


def test_an_address_needs_a_scheme() -> None:
    with pytest.raises(ConfigError, match="http://"):
        RemoteJudge("judge:8000")


def test_threads_share_a_client_and_its_uploads() -> None:
    service = FakeService()
    with listening(service) as url, RemoteJudge(url) as judge, ThreadPoolExecutor(8) as pool:
        replies = pool.map(lambda i: judge.score([item(str(i % 2), image=png(i % 2))])[0].reward, range(32))
        assert list(replies) == [float(i % 2) for i in range(32)]
    assert list(service.uploads.values()) == [1, 1]


def test_the_asynchronous_client_follows_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_backoff_s", lambda _: 0.0)
    service = FakeService(connection_refused, refuse(503))

    async def talk() -> None:
        async with AsyncRemoteJudge("http://judge", transport=httpx.MockTransport(service)) as judge:
            calls = [judge.score([item(str(i), image=png(i % 2))]) for i in range(6)]
            assert [r[0].reward for r in await asyncio.gather(*calls)] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
            assert (await judge.compare(item(), "0", "1")).better == "second"
            assert (await judge.rank(item(), ["0", "1"])).best == 1
            service.first.append(refuse(404))
            with pytest.raises(RemoteError):
                await judge.score([item()])

    started = time.monotonic()
    asyncio.run(talk())
    assert time.monotonic() - started < 5
    assert sorted(service.uploads.values()) == [1, 1]
