"""Whether weights can be trusted with the service: they must tell a known better response from a worse one, by the
image. A judge that is blind, broken or upside down fails, whatever its other figures."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.judge import JudgeInput
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.config import CanaryConfig

if TYPE_CHECKING:
    import PIL.Image

Ask = Callable[[JudgeInput, "PIL.Image.Image"], Awaitable[Judgement]]

_OWN = CanaryConfig(
    image="canary.png",
    question="What colour is the circle?",
    better=("The circle is yellow.",),
    worse=("The circle is purple.",),
)
"""A yellow circle drawn by `shapes`, in this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How a version did."""

    problem: str
    """Why it must not serve; "" if it may."""
    margin: float | None = None
    """Mean reward of the better responses less that of the worse."""
    change: float | None = None
    """Mean change of the better responses' rewards where the image is blank."""


class Canary:
    """A stored image with known better and worse responses."""

    def __init__(self, config: CanaryConfig, limits: ImageLimits) -> None:
        """Raises InputError where the image cannot be read."""
        told = config if config.image else _OWN
        self.question, self.better, self.worse = told.question, told.better, told.worse
        self.min_margin, self.min_change = config.min_margin, config.min_change
        try:
            own = files("vlgenrm_ray.serving") / _OWN.image
            self.data = Path(config.image).read_bytes() if config.image else own.read_bytes()
            self.image = images.decode(self.data, limits, "canary")
        except (OSError, ImageError) as error:
            raise InputError(f"canary.image {config.image!r}: {error}") from error

    def item(self, response: str) -> JudgeInput:
        """A question about the picture; its id is the same for all versions, so they are compared on equal chances."""
        return JudgeInput(id=f"canary/{response}", images=(), question=self.question, response=response)

    async def examine(self, ask: Ask) -> Finding:
        """Have the canary judged. Raises EngineLostError."""
        blank = images.blank(self.image.size)
        rewards: dict[tuple[str, bool], float] = {}
        for response in (*self.better, *self.worse):
            for seen in (True, False) if response in self.better else (True,):
                judged = await ask(self.item(response), self.image if seen else blank)
                if judged.reward is None:
                    return Finding(problem=f"no reward for {response!r}: {judged.status} {judged.detail}")
                rewards[response, seen] = judged.reward
        good = _mean([rewards[response, True] for response in self.better])
        margin = good - _mean([rewards[response, True] for response in self.worse])
        change = _mean([abs(rewards[response, True] - rewards[response, False]) for response in self.better])
        problem = ""
        if margin <= self.min_margin:
            problem = f"it does not prefer the better response: margin {margin:.3f}, needed above {self.min_margin}"
        elif change < self.min_change:
            problem = f"it does not look: a blank image changes its reward by {change:.3f}, needed {self.min_change}"
        return Finding(problem=problem, margin=margin, change=change)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
