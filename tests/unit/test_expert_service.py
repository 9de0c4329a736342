"""`POST /v1/evidence`: bounded in number and time, and a status instead of every failure."""

import asyncio
import base64
import time

import httpx
import pytest
from fake_experts import PIPELINE, SERVED, expert_service
from pydantic import ValidationError
from serving_examples import png, service

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.records import Truth
from vlgenrm_ray.serving.api import build_api
from vlgenrm_ray.serving.experts import EvidenceJob, EvidenceRequest, EvidenceResponse, ExpertService, ExpertWorker

IMAGE = base64.b64encode(png(9, side=32)).decode()
BLACK = base64.b64encode(png(0, side=32)).decode()


def request(*responses: str, image: str = IMAGE, deadline_s: float | None = None) -> EvidenceRequest:
    return EvidenceRequest(image=image, responses=list(responses) or ["A red circle."], deadline_s=deadline_s)


def test_each_claim_has_a_verdict_and_boxes() -> None:
    reply = asyncio.run(
        expert_service(service()).examine(request("There is a red circle. The circle is blue.", "Hello."))
    )
    assert (reply.status, reply.width, reply.height) == (Status.OK, 32, 32)
    first, silent = reply.claims
    assert [claim.truth for claim in first] == [Truth.SUPPORTED, Truth.CONTRADICTED]
    assert (first[0].boxes[0].label, first[0].boxes[0].x1) == ("circle", 15.0)
    assert silent == []
    assert [s.attribute for s in reply.sightings] == ["red"]
    assert reply.total_s > 0


def test_failures_are_a_status_without_verdicts() -> None:
    async def dies(job: EvidenceJob) -> EvidenceResponse:
        raise RuntimeError("the actor died")

    async def run() -> list[EvidenceResponse]:
        experts = expert_service(service())
        return [
            await experts.examine(request(image=IMAGE[:60])),
            await experts.examine(request(image="sha256:" + "0" * 64)),
            await experts.examine(request(image=BLACK)),
            await expert_service(service(), dies).examine(request()),
        ]

    replies = asyncio.run(run())
    assert [r.status.value for r in replies] == ["bad_image", "bad_image", "internal", "internal"]
    assert all(r.detail and not r.claims for r in replies)


@pytest.mark.parametrize("fields", [{"images": [IMAGE, BLACK]}, {"image": [IMAGE]}, {"image": IMAGE, "images": []}])
def test_evidence_is_of_one_image(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="one image"):
        EvidenceRequest.model_validate({"responses": ["A red circle."]} | fields)


def test_requests_are_bounded_in_number_and_time() -> None:
    async def sleeps(job: EvidenceJob) -> EvidenceResponse:
        await asyncio.sleep(30.0)
        raise AssertionError

    async def run() -> list[EvidenceResponse]:
        experts = expert_service(service(), sleeps, deadline_s=0.2)
        first = [asyncio.ensure_future(experts.examine(request(deadline_s=wanted))) for wanted in (None, 600.0)]
        await asyncio.sleep(0.05)
        third = await experts.examine(request())
        return [third, *await asyncio.gather(*first)]

    replies = asyncio.run(run())
    assert [r.status.value for r in replies] == ["overloaded", "timeout", "timeout"]


def test_a_job_past_its_deadline_is_not_started() -> None:
    job = EvidenceJob(image=service().images.add(png(9, side=32)), responses=("A star.",), deadline_s=-1.0)
    worker = ExpertWorker(SERVED, service().config.images, PIPELINE)
    assert asyncio.run(worker.examine(job)).status is Status.TIMEOUT


def test_without_experts_the_route_is_404_and_the_page_shows_no_evidence() -> None:
    async def swap_model(folder: str) -> object:
        raise NotImplementedError

    async def run(experts: ExpertService | None) -> tuple[httpx.Response, str]:
        application = build_api(service(), ready=lambda: True, swap_model=swap_model, experts=experts)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as http:
            body = request().model_dump()
            return await http.post("/v1/evidence", json=body), (await http.get("/")).text

    reply, page = asyncio.run(run(None))
    assert reply.status_code == 404
    assert "serving.experts" in reply.json()["detail"]
    assert 'data-experts="no"' in page
    reply, page = asyncio.run(run(expert_service(service())))
    assert reply.json()["status"] == "ok"
    assert 'data-experts="yes" data-critiques="4" data-mode="cot"' in page


def test_the_work_of_a_job_ends_at_its_deadline_and_with_its_client() -> None:
    texts = ("There is a red circle. " * 400,) * 16
    image = service().images.add(png(9, side=32))
    worker = ExpertWorker(SERVED, service().config.images, PIPELINE)

    async def run() -> tuple[EvidenceResponse, float, float]:
        begin = time.monotonic()
        late = await worker.examine(EvidenceJob(image=image, responses=texts, deadline_s=0.01))
        late_s = time.monotonic() - begin
        work = asyncio.ensure_future(worker.examine(EvidenceJob(image=image, responses=texts, deadline_s=600.0)))
        await asyncio.sleep(0.01)
        work.cancel()
        begin = time.monotonic()
        # The next one need not wait for the end of the cancelled one.
        assert (await worker.examine(EvidenceJob(image=image, responses=("A star.",), deadline_s=60.0))).status == "ok"
        return late, late_s, time.monotonic() - begin

    begin = time.monotonic()
    PIPELINE.report(images.decode(image.data, ImageLimits()), texts)
    whole_s = time.monotonic() - begin
    late, late_s, next_s = asyncio.run(run())
    assert late.status is Status.TIMEOUT
    assert late_s < whole_s / 2
    assert next_s < whole_s / 2
