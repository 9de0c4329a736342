"""The service's promises: computed once, bounded, by the deadline, and a failure stays with its item."""

import asyncio
import base64
import random

import pytest
from serving_examples import item, png, request, service, yes

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.judge.protocol import UNKNOWN_IMAGE
from vlgenrm_ray.judge.wire import MAX_TEXT, CompareRequest, RankRequest, ScoreReply, Status
from vlgenrm_ray.serving.score import OverloadedError
from vlgenrm_ray.serving.service import Service

IMAGE = "data:image/png;base64," + base64.b64encode(png()).decode()
OTHER = base64.b64encode(png(9)).decode()


def one(served: Service, **more: object) -> ScoreReply:
    return asyncio.run(served.score(request(item(**more)))).items[0]


def test_an_item_has_its_reward_and_what_it_rests_on() -> None:
    reply = one(service(), image=IMAGE)
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
    assert served.engine.num_asked == 1


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
def test_what_decides_the_result_is_in_the_key(other: dict[str, object]) -> None:
    served = service()

    async def run() -> None:
        await served.score(request(item(image=IMAGE)))
        await served.score(request(item(**({"image": IMAGE} | other))))

    asyncio.run(run())
    assert served.engine.num_asked == 2


def test_another_version_is_asked_anew() -> None:
    served = service()
    key = "first"

    async def run() -> list[str]:
        await served.score(request(item()))
        served.model = served.model.__class__(number=0, folder="/first", version=key)
        return [(await served.score(request(item()))).items[0].model_version]

    asyncio.run(run())
    assert served.engine.num_asked == 2


def test_identical_requests_at_the_same_time_are_computed_once() -> None:
    served = service(delay_s=0.02)

    async def run() -> list[ScoreReply]:
        replies = await asyncio.gather(*(served.score(request(item(), item("Other."))) for _ in range(20)))
        return [reply for response in replies for reply in response.items]

    replies = asyncio.run(run())
    assert served.engine.num_asked == 2
    assert {reply.status for reply in replies} == {Status.OK}


def test_work_is_cancelled_when_its_last_waiter_goes() -> None:
    served = service(delay_s=30.0)

    async def run() -> tuple[int, int]:
        first, second = (asyncio.ensure_future(served.score(request(item()))) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        after_one = served.engine.num_aborted
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await asyncio.sleep(0.05)
        return after_one, served.engine.num_aborted

    assert asyncio.run(run()) == (0, 1)
    assert served.flights.num_under_way == 0


def test_a_full_queue_answers_at_once() -> None:
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
        assert [r.status for r in joined.items] == [Status.OK, Status.OVERLOADED], "what is under way may be joined"
        await busy

    asyncio.run(full())


def test_a_deadline_leaves_what_is_finished() -> None:
    def wavers(prompt: Prompt, chance: random.Random) -> str:
        return yes(prompt, chance)

    served = service(wavers)
    served.engine.delay_s = lambda prompt, place: 0.0 if place < 2 else 30.0

    async def run() -> tuple[ScoreReply, ScoreReply]:
        (partial,) = (await served.score(request(item(), deadline_s=0.2))).items
        served.engine.delay_s = lambda prompt, place: 0.0
        return partial, (await served.score(request(item()))).items[0]

    partial, whole = asyncio.run(run())
    assert (partial.status, len(partial.critiques), partial.num_asked) == (Status.OK, 2, 4)
    assert (whole.cached, len(whole.critiques)) == (False, 4), "what was cut short must not be kept"


def test_nothing_by_the_deadline_is_a_timeout_and_the_patient_get_theirs() -> None:
    served = service(delay_s=0.3)

    async def run() -> list[ScoreReply]:
        hasty = served.score(request(item(), deadline_s=0.05))
        patient = served.score(request(item(), deadline_s=10.0))
        return [response.items[0] for response in await asyncio.gather(hasty, patient)]

    hasty, patient = asyncio.run(run())
    assert (hasty.status, hasty.reward) == (Status.TIMEOUT, None)
    assert patient.status is Status.OK


def test_failures_stay_with_their_items() -> None:
    def mumbles(prompt: Prompt, chance: random.Random) -> str:
        if "crash" in prompt.text:
            raise RuntimeError("a kernel failed")
        return "I cannot tell." if "unclear" in prompt.text else yes(prompt, chance)

    served = service(mumbles)
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
    assert replies[8].detail == "3 images; the engine takes 2, see its setting engine.max_images"
    assert "vlgenrm_items_total" in served.metrics.render().decode()


def test_messages_are_a_question_with_its_image() -> None:
    seen: list[Prompt] = []

    def watches(prompt: Prompt, chance: random.Random) -> str:
        seen.append(prompt)
        return yes(prompt, chance)

    content = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "What is there?"}]
    reply = one(service(watches), question=None, messages=[{"role": "user", "content": content}], reference="A star.")
    assert reply.status is Status.OK
    assert len(seen[0].images) == 1
    assert "What is there?\n  Reference answer: A star." in seen[0].text


def test_a_conversation_is_bounded_as_a_question_is() -> None:
    served = service()
    turns = [{"role": role, "content": "word " * 7_000} for role in ("user", "assistant", "user")]
    reply = one(served, question=None, messages=turns)
    assert (reply.status, reply.reward) == (Status.TOO_LARGE, None)
    assert f"limit {MAX_TEXT}" in reply.detail
    assert served.engine.num_asked == 0


def shades(prompt: Prompt) -> list[int]:
    return [image.getpixel((0, 0))[0] for image in prompt.images]  # type: ignore[index]


def test_several_images_are_shown_in_order_the_items_own_first() -> None:
    seen: list[list[int]] = []

    def watches(prompt: Prompt, chance: random.Random) -> str:
        seen.append(shades(prompt))
        return yes(prompt, chance)

    served = service(watches, max_images=4)
    part = {"type": "image_url", "image_url": {"url": OTHER}}
    last = {"type": "image_url", "image_url": {"url": base64.b64encode(png(30)).decode()}}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}, last]}]
    mixed = one(served, question=None, messages=turns, images=[IMAGE, IMAGE], num_critiques=1)
    beside = one(served, question=None, messages=turns, image=IMAGE, num_critiques=1)
    assert mixed.status is beside.status is Status.OK
    assert seen == [[0, 0, 9, 30], [0, 9, 30]]


def test_the_order_of_images_is_in_the_key_and_a_list_of_one_is_that_image() -> None:
    served = service()
    asked = [{"images": [IMAGE, OTHER]}, {"images": [OTHER, IMAGE]}, {"images": [IMAGE, IMAGE]}, {"image": IMAGE}]
    assert not any(one(served, **shown).cached for shown in asked)
    assert one(served, images=[IMAGE]).cached
    assert one(served, images=[IMAGE, OTHER]).cached
    assert served.engine.num_asked == 4


def test_too_many_images_never_reach_the_engine() -> None:
    served = service(max_images=1)
    reply = one(served, images=[IMAGE, "no image at all"])
    assert (reply.status, reply.reward) == (Status.TOO_LARGE, None)
    assert "engine.max_images" in reply.detail
    assert served.engine.num_asked == 0
    assert one(served, image=IMAGE).status is Status.OK


def test_compare_and_rank_say_what_the_rewards_say() -> None:
    def prefers(prompt: Prompt, chance: random.Random) -> str:
        return "I cannot tell." if "fog" in prompt.text else f"Verdict: {'Yes' if 'star' in prompt.text else 'No'}"

    served = service(prefers)
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
