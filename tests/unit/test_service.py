"""`Service`: equal items are computed once, queue and cache are bounded, deadlines hold, failures affect one item."""

import asyncio
import base64

import pytest
from serving_examples import item, png, request, says_yes, service

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.judge.protocol import UNKNOWN_IMAGE
from vlgenrm_ray.judge.wire import MAX_TEXT, CompareRequest, RankRequest, ScoreReply, Status
from vlgenrm_ray.serving.limits import OverloadedError
from vlgenrm_ray.serving.model_version import ModelVersion
from vlgenrm_ray.serving.service import Service

IMAGE = "data:image/png;base64," + base64.b64encode(png()).decode()
OTHER = base64.b64encode(png(9)).decode()


def score_one(served: Service, **fields: object) -> ScoreReply:
    return asyncio.run(served.score(request(item(**fields)))).items[0]


def test_a_reply_has_reward_critiques_and_timings() -> None:
    reply = score_one(service(), image=IMAGE)
    assert (reply.status, reply.reward) == (Status.OK, pytest.approx(0.9))
    assert (len(reply.critiques), reply.num_asked, reply.model_version) == (4, 4, "first-0")
    assert reply.critiques[0].p_yes == pytest.approx(0.9)
    assert reply.verdict_mass == pytest.approx(1.0)
    assert reply.timings.total_s >= reply.timings.engine_s > 0


def test_a_repetition_comes_from_the_cache() -> None:
    served = service()

    async def run() -> list[ScoreReply]:
        return [(await served.score(request(item(image=IMAGE)))).items[0] for _ in range(2)]

    first, second = asyncio.run(run())
    assert (first.cached, second.cached) == (False, True)
    assert (second.reward, second.critiques) == (first.reward, first.critiques)
    assert served.generator.num_asked == 1


@pytest.mark.parametrize(
    "other",
    [
        {"response": "No star."},
        {"question": "Is there a star?"},
        {"reference": "A star."},
        {"mode": "direct"},
        {"num_critiques": 2},
        {"seed": 7},
        {"aggregator": "vote"},
        {"image": OTHER},
        {"image": None, "images": [IMAGE, OTHER]},
        {"image": None},
    ],
)
def test_everything_that_affects_the_result_is_in_the_cache_key(other: dict[str, object]) -> None:
    served = service()

    async def run() -> None:
        await served.score(request(item(image=IMAGE)))
        await served.score(request(item(**({"image": IMAGE} | other))))

    asyncio.run(run())
    assert served.generator.num_asked == 2


def test_another_model_version_is_computed_again() -> None:
    served = service()

    async def run() -> None:
        await served.score(request(item()))
        served.model = ModelVersion(number=0, folder="/first", name="first")
        await served.score(request(item()))

    asyncio.run(run())
    assert served.generator.num_asked == 2


def test_identical_requests_at_the_same_time_are_computed_once() -> None:
    served = service(delay_s=0.02)

    async def run() -> list[ScoreReply]:
        replies = await asyncio.gather(*(served.score(request(item(), item("Other."))) for _ in range(20)))
        return [reply for response in replies for reply in response.items]

    replies = asyncio.run(run())
    assert served.generator.num_asked == 2
    assert {reply.status for reply in replies} == {Status.OK}


def test_a_computation_is_cancelled_with_its_last_waiter() -> None:
    served = service(delay_s=30.0)

    async def run() -> tuple[int, int]:
        first, second = (asyncio.ensure_future(served.score(request(item()))) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        after_one = served.generator.num_aborted
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await asyncio.sleep(0.05)
        return after_one, served.generator.num_aborted

    assert asyncio.run(run()) == (0, 1)
    assert served.single_flight.num_running == 0


def test_a_full_queue_is_overloaded_at_once() -> None:
    served = service(delay_s=0.3, max_queue=2)

    async def run() -> list[Status]:
        reply = await served.score(request(*(item(f"r{i}") for i in range(5))))
        return [r.status for r in reply.items]

    assert asyncio.run(run()) == [Status.OK] * 2 + [Status.OVERLOADED] * 3

    async def full() -> None:
        busy = asyncio.ensure_future(served.score(request(item("a"), item("b"))))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError, match="ask again"):
            await served.score(request(item("c")))
        joined = await served.score(request(item("a"), item("c")))
        assert [r.status for r in joined.items] == [Status.OK, Status.OVERLOADED], "a running computation may be joined"
        await busy

    asyncio.run(full())


def test_a_reply_at_the_deadline_has_the_finished_critiques() -> None:
    served = service()
    served.generator.delay_s = lambda prompt, place: 0.0 if place < 2 else 30.0

    async def run() -> tuple[ScoreReply, ScoreReply]:
        (partial,) = (await served.score(request(item(), deadline_s=0.2))).items
        served.generator.delay_s = lambda prompt, place: 0.0
        return partial, (await served.score(request(item()))).items[0]

    partial, whole = asyncio.run(run())
    assert (partial.status, len(partial.critiques), partial.num_asked) == (Status.OK, 2, 4)
    assert (whole.cached, len(whole.critiques)) == (False, 4), "an incomplete result must not be cached"


def test_no_critique_by_the_deadline_is_a_timeout_and_later_deadlines_are_served() -> None:
    served = service(delay_s=0.3)

    async def run() -> list[ScoreReply]:
        hasty = served.score(request(item(), deadline_s=0.05))
        patient = served.score(request(item(), deadline_s=10.0))
        return [response.items[0] for response in await asyncio.gather(hasty, patient)]

    hasty, patient = asyncio.run(run())
    assert (hasty.status, hasty.reward) == (Status.TIMEOUT, None)
    assert patient.status is Status.OK


def test_failures_stay_with_their_items() -> None:
    def unclear(prompt: Prompt, random: object) -> str:
        if "crash" in prompt.text:
            raise RuntimeError("a kernel failed")
        return "I cannot tell." if "unclear" in prompt.text else says_yes(prompt, random)

    served = service(unclear)
    broken = base64.b64encode(png()[:40]).decode()
    items = [
        item(image=IMAGE),
        item("unclear"),
        item("crash"),
        item(image=broken),
        item(image="sha256:" + "0" * 64),
        item(image="http://example.org/a.png"),
        item("long " * 12_000),
        item(images=[IMAGE, broken]),
        item(images=[IMAGE] * 3),
        item("last"),
    ]
    replies = asyncio.run(served.score(request(*items))).items
    assert [r.status.value for r in replies] == [
        *("ok", "unreadable_verdict", "internal", "bad_image", "bad_image"),
        *("bad_image", "too_large", "bad_image", "too_large", "ok"),
    ]
    assert all((r.reward is None) == (r.status is not Status.OK) for r in replies)
    assert replies[4].detail.startswith(UNKNOWN_IMAGE), "clients know by it that they must send the image again"
    assert "(image 2 of 2)" in replies[7].detail
    assert replies[8].detail == "3 images; the engine accepts 2; raise its setting engine.max_images"
    assert "vlgenrm_items_total" in served.metrics.render().decode()


def test_messages_become_a_question_with_images() -> None:
    prompts: list[Prompt] = []

    def record(prompt: Prompt, random: object) -> str:
        prompts.append(prompt)
        return says_yes(prompt, random)

    content = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "What is there?"}]
    reply = score_one(
        service(record), question=None, messages=[{"role": "user", "content": content}], reference="A star."
    )
    assert reply.status is Status.OK
    assert len(prompts[0].images) == 1
    assert "What is there?\n  Reference answer: A star." in prompts[0].text


def test_the_text_of_a_conversation_is_bounded() -> None:
    served = service()
    turns = [{"role": role, "content": "word " * 7_000} for role in ("user", "assistant", "user")]
    reply = score_one(served, question=None, messages=turns)
    assert (reply.status, reply.reward) == (Status.TOO_LARGE, None)
    assert f"limit {MAX_TEXT}" in reply.detail
    assert served.generator.num_asked == 0


def shades(prompt: Prompt) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in prompt.images]  # type: ignore[index]


def test_images_keep_their_order_the_items_own_first() -> None:
    prompts: list[list[int]] = []

    def record(prompt: Prompt, random: object) -> str:
        prompts.append(shades(prompt))
        return says_yes(prompt, random)

    served = service(record, max_images=4)
    part = {"type": "image_url", "image_url": {"url": OTHER}}
    last = {"type": "image_url", "image_url": {"url": base64.b64encode(png(30)).decode()}}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}, last]}]
    mixed = score_one(served, question=None, messages=turns, images=[IMAGE, IMAGE], num_critiques=1)
    single = score_one(served, question=None, messages=turns, image=IMAGE, num_critiques=1)
    assert mixed.status is single.status is Status.OK
    assert prompts == [[0, 0, 9, 30], [0, 9, 30]]


def test_image_order_is_in_the_cache_key_and_a_list_of_one_equals_that_image() -> None:
    served = service()
    variants = [{"images": [IMAGE, OTHER]}, {"images": [OTHER, IMAGE]}, {"images": [IMAGE, IMAGE]}, {"image": IMAGE}]
    assert not any(score_one(served, **images).cached for images in variants)
    assert score_one(served, images=[IMAGE]).cached
    assert score_one(served, images=[IMAGE, OTHER]).cached
    assert served.generator.num_asked == 4


def test_too_many_images_are_refused_before_the_engine() -> None:
    served = service(max_images=1)
    reply = score_one(served, images=[IMAGE, "no image at all"])
    assert (reply.status, reply.reward) == (Status.TOO_LARGE, None)
    assert "engine.max_images" in reply.detail
    assert served.generator.num_asked == 0
    assert score_one(served, image=IMAGE).status is Status.OK


def test_compare_and_rank_follow_the_rewards() -> None:
    def prefers_star(prompt: Prompt, random: object) -> str:
        return "I cannot tell." if "fog" in prompt.text else f"Verdict: {'Yes' if 'star' in prompt.text else 'No'}"

    served = service(prefers_star)
    compared = asyncio.run(served.compare(CompareRequest(item=item(), first="A circle.", second="A star.")))
    assert (compared.better, compared.margin) == ("second", pytest.approx(-0.8))
    ranked = asyncio.run(served.rank(RankRequest(item=item(), responses=["fog", "A circle.", "A star."])))
    assert (ranked.order, ranked.best) == ([2, 1, 0], 2)


def test_the_cache_is_bounded_in_bytes() -> None:
    served = service(cache_mib=0.02)

    async def run() -> None:
        for i in range(50):
            await served.score(request(item(f"r{i}")))

    asyncio.run(run())
    assert 0 < len(served.cache) < 50
    assert served.cache.num_bytes <= served.cache.max_bytes
