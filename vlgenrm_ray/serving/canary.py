"""The canary: weights may serve only if they prefer a known better response to a worse one, and look at the image.

A judge that ignores the image, writes no readable verdict or prefers the wrong response fails, however good its other
metrics are.
"""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.judge import JudgeInput
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.config import CanaryConfig

if TYPE_CHECKING:
    import PIL.Image

JudgeImage = Callable[[JudgeInput, "PIL.Image.Image"], Awaitable[Judgement]]

_BUILT_IN = CanaryConfig(
    image="canary.png",
    question="What colour is the circle?",
    better=("The circle is yellow.",),
    worse=("The circle is purple.",),
)
"""A yellow circle drawn by `shapes`; the image is in this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """Result of a canary run."""

    problem: str
    """Reason why the weights must not serve; "" if they passed."""
    margin: float | None = None
    """Mean reward of the better responses minus that of the worse."""
    change: float | None = None
    """Mean absolute change of the better responses' rewards when the image is replaced by a blank one."""


class Canary:
    """An image with known better and worse responses."""

    def __init__(self, config: CanaryConfig, limits: ImageLimits) -> None:
        """Read the image and the responses. Raise InputError if the image cannot be read."""
        example = config if config.image else _BUILT_IN
        self.question, self.better, self.worse = example.question, example.better, example.worse
        self.min_margin, self.min_change = config.min_margin, config.min_change
        try:
            built_in = files("vlgenrm_ray.serving") / _BUILT_IN.image
            self.data = images.fetch(config.image, limits) if config.image else built_in.read_bytes()
            self.image = images.decode(self.data, limits, "canary")
        except (OSError, ImageError) as error:
            raise InputError(f"canary.image {config.image!r}: {error}") from error

    def judge_input(self, response: str) -> JudgeInput:
        """Return the judge's input for a response. The id, and thereby the seeds, are the same for all versions."""
        return JudgeInput(id=f"canary/{response}", images=(), question=self.question, response=response)

    async def run(self, judge: JudgeImage, *, pairwise: bool = False) -> CanaryResult:
        """Judge every response with the image, and the better ones with a blank image too.

        A pairwise judge is shown each better response with each worse one, in both orders: the margin is then
        2 p - 1 of its mean probability p that the better one is better, and the change is that of p.

        Raises:
            EngineLostError: The engine is gone.
        """
        if pairwise:
            return await self._run_pairs(judge)
        blank = images.blank(self.image.size)
        rewards: dict[tuple[str, bool], float] = {}
        for response in (*self.better, *self.worse):
            for with_image in (True, False) if response in self.better else (True,):
                judgement = await judge(self.judge_input(response), self.image if with_image else blank)
                if judgement.reward is None:
                    return CanaryResult(problem=f"no reward for {response!r}: {judgement.status} {judgement.detail}")
                rewards[response, with_image] = judgement.reward
        better = fmean(rewards[response, True] for response in self.better)
        margin = better - fmean(rewards[response, True] for response in self.worse)
        change = fmean(abs(rewards[response, True] - rewards[response, False]) for response in self.better)
        return self._result(margin, change)

    async def _run_pairs(self, judge: JudgeImage) -> CanaryResult:
        blank = images.blank(self.image.size)
        p_better: dict[bool, list[float]] = {True: [], False: []}
        for better, worse, with_image in itertools.product(self.better, self.worse, (True, False)):
            orders = []
            for one, other in ((better, worse), (worse, better)):
                item = replace(self.judge_input(one), id=f"canary/{one}/{other}", other=other)
                judgement = await judge(item, self.image if with_image else blank)
                if judgement.reward is None:
                    return CanaryResult(problem=f"no reward for {one!r}: {judgement.status} {judgement.detail}")
                orders.append(judgement.reward)
            p_better[with_image].append((orders[0] + 1.0 - orders[1]) / 2.0)
        change = fmean(abs(shown - hidden) for shown, hidden in zip(p_better[True], p_better[False], strict=True))
        return self._result(2.0 * fmean(p_better[True]) - 1.0, change)

    def _result(self, margin: float, change: float) -> CanaryResult:
        problem = ""
        if margin <= self.min_margin:
            problem = f"it does not prefer the better response: margin {margin:.3f}, needed above {self.min_margin}"
        elif change < self.min_change:
            problem = (
                f"it does not look at the image: a blank one changes its reward by {change:.3f}, "
                f"needed at least {self.min_change}"
            )
        return CanaryResult(problem=problem, margin=margin, change=change)
