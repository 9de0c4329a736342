"""Image ablation: the same answers scored with their images and with blank ones.

A judge whose reward does not fall when the image is replaced by a blank one does not use the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlgenrm_ray.data import images
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.reward import OK, Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationResult:
    """Two rewards of one answer; None where the judges gave none."""

    original: float | None
    """Reward with the image of the question."""
    blank: float | None
    """Reward with a blank image of the same size."""


async def ablate_image(reward: Reward, answers: Sequence[Rollout], num_answers: int) -> tuple[AblationResult, ...]:
    """Score some answers once more with blank images.

    Args:
        reward: Reward of the run. Only its image-dependent part is used.
        answers: Answers that `reward` has scored.
        num_answers: Number of answers to score again, evenly spread over `answers`. Those without a reward are skipped.

    Returns:
        One result per answer scored again; () if no part of the reward looks at images.

    Raises:
        RemoteError: The reward is unavailable.
    """
    judges = reward.image_dependent_part()
    num_answers = min(num_answers, len(answers))
    chosen = [answers[i * len(answers) // num_answers] for i in range(num_answers)]
    scored = [answer for answer in chosen if answer.status == OK]
    if judges is None or not scored:
        return ()
    # If the reward has further parts, the answers hold only the sum: the judges must score the original images again.
    original = [a.reward for a in scored] if judges is reward else [o.reward for o in await judges.score(scored)]
    blank = await judges.score([_with_blank_image(answer) for answer in scored])
    return tuple(AblationResult(original=o, blank=b.reward) for o, b in zip(original, blank, strict=True))


def ablation_metrics(results: Sequence[AblationResult]) -> dict[str, float | None]:
    """Average the results that have both rewards.

    Returns:
        `blank_image_reward`: mean reward with blank images. `image_reward_gain`: mean reward of the same answers with
        their own images, less `blank_image_reward`. Both are None if no result has both rewards.
    """
    pairs = [(r.original, r.blank) for r in results if r.original is not None and r.blank is not None]
    if not pairs:
        return {"blank_image_reward": None, "image_reward_gain": None}
    blank = sum(b for _, b in pairs) / len(pairs)
    return {"blank_image_reward": blank, "image_reward_gain": sum(o for o, _ in pairs) / len(pairs) - blank}


def _with_blank_image(answer: Rollout) -> Rollout:
    """Replace all images. The id stays, so that the judge samples with the same seed."""
    first, *others = (images.blank_ref(image.width, image.height) for image in answer.question.images)
    return replace(answer, question=replace(answer.question, image=first, more_images=tuple(others)))
