"""The judge over a generator that serves many callers at once: one item, its critiques, its reward, by a deadline."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vlgenrm_ray.engines.contracts import LiveGenerator, Refused
from vlgenrm_ray.judge.inquiry import Inquiry, Item, Rationale, judgement
from vlgenrm_ray.judge.parts import least, parts
from vlgenrm_ray.records import Judgement

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of an item."""

    judgement: Judgement
    num_asked: int
    """Critiques asked for; the judgement has fewer where the deadline came first."""
    p_yes: tuple[float | None, ...] = ()
    """One per critique; None where its verdict cannot be read."""
    num_tokens: int = 0
    engine_s: float = 0.0
    detail: str = ""
    """What the engine said where it refused."""


async def judge(
    inquiry: Inquiry,
    generator: LiveGenerator,
    item: Item,
    images: "tuple[PIL.Image.Image, ...]",
    *,
    aggregator: Any = None,
    deadline: float | None = None,
) -> Judged:
    """Critiques of an item whose pixels are `images`, as many as are finished by `deadline`, and the reward they give.

    Where sentences are judged, each needs a critique finished. `deadline`: as `asyncio.get_running_loop().time()`
    counts. What is not finished by then is aborted; so is all if the caller is cancelled. Where nothing is finished,
    the status is `timeout`. Raises EngineLostError.
    """
    several = parts(item, inquiry.config.unit)
    made = await asyncio.gather(
        *(_judge(inquiry, generator, part, images, aggregator=aggregator, deadline=deadline) for part in several)
    )
    return Judged(
        judgement=least(item.id, [one.judgement for one in made]),
        num_asked=sum(one.num_asked for one in made),
        p_yes=tuple(p for one in made for p in one.p_yes),
        num_tokens=sum(one.num_tokens for one in made),
        engine_s=max(one.engine_s for one in made),
        detail=next((one.detail for one in made if one.detail), ""),
    )


async def _judge(
    inquiry: Inquiry,
    generator: LiveGenerator,
    item: Item,
    images: "tuple[PIL.Image.Image, ...]",
    *,
    aggregator: Any,
    deadline: float | None,
) -> Judged:
    begin = time.monotonic()
    seed = inquiry.seed(item)
    found: dict[int, Rationale] = {}
    refused: Refused | None = None
    try:
        async with (
            asyncio.timeout_at(deadline),
            aclosing(
                cast("Any", generator.as_finished(inquiry.prompt(item, images), inquiry.sampling, seed))
            ) as samples,
        ):
            async for place, outcome in samples:
                if isinstance(outcome, Refused):
                    refused = outcome
                    break
                found[place] = inquiry.rationale(outcome, seed)
    except TimeoutError:
        pass
    rationales = [found[place] for place in sorted(found)]
    if refused is None and not rationales:
        made = Judgement(id=item.id, reward=None, status="timeout", num_critiques=0, verdict_mass=0.0)
    else:
        made = judgement(item.id, refused or rationales, aggregator or inquiry.config.aggregator)
    return Judged(
        judgement=made,
        num_asked=inquiry.sampling.n,
        p_yes=() if refused else tuple(r.verdict.p_yes for r in rationales),
        num_tokens=sum(r.num_tokens for r in rationales),
        engine_s=time.monotonic() - begin,
        detail=refused.detail if refused else "",
    )
