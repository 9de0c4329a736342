"""Whether the judges behind a reward look: the same answers, by their pictures and by blank ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlgenrm_ray.data import images
from vlgenrm_ray.policy.scored import OK, Reward
from vlgenrm_ray.records import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the judges make of one answer; None where they gave no reward."""

    seen: float | None
    """By its question's picture."""
    blank: float | None
    """By a blank one of the same size."""


async def looks(reward: Reward, answers: Sequence[Rollout], number: int) -> tuple[Look, ...]:
    """What the judges among the rewards make of `number` of the answers, spread over all; of those without a reward
    none is asked. () where no part of the reward looks. Raises RemoteError.
    """
    judges = reward.looking()
    number = min(number, len(answers))
    chosen = [answers[place * len(answers) // number] for place in range(number)]
    shown = [answer for answer in chosen if answer.status == OK]
    if judges is None or not shown:
        return ()
    # Where functions have a part in the reward, what the judges alone say was not kept.
    seen = [a.reward for a in shown] if judges is reward else [s.reward for s in await judges.score(shown)]
    blank = await judges.score([_blinded(answer) for answer in shown])
    return tuple(Look(seen=s, blank=b.reward) for s, b in zip(seen, blank, strict=True))


def figures(found: Sequence[Look]) -> dict[str, float | None]:
    """`blank_reward`: the judges' mean reward by blank pictures; `sight`: by how much that of the same answers is
    higher by their own. None where nothing is known.
    """
    pairs = [(look.seen, look.blank) for look in found if look.seen is not None and look.blank is not None]
    if not pairs:
        return {"blank_reward": None, "sight": None}
    blank = sum(b for _, b in pairs) / len(pairs)
    return {"blank_reward": blank, "sight": sum(s for s, _ in pairs) / len(pairs) - blank}


def _blinded(answer: Rollout) -> Rollout:
    """The same answer to the same question about nothing. With its id, it is judged by the same chances."""
    image = answer.question.image
    return replace(answer, question=replace(answer.question, image=images.blank_ref(image.width, image.height)))
