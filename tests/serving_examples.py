"""A service over a scripted engine, for unit tests."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

from fake_live_generator import FakeLiveGenerator
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import Script, ScriptedGenerator
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine_worker import Loaded, Replica
from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4)
FIRST = Model(number=0, folder="/first", version="first-0")


def png(shade: int = 0, side: int = 16) -> bytes:
    """An image as it is sent."""
    target = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(target, "PNG")
    return target.getvalue()


def item(response: str = "There is a star.", **more: object) -> ScoreItem:
    return ScoreItem.model_validate({"question": "What is there?", "response": response} | more)


def request(*items: ScoreItem, deadline_s: float | None = None) -> ScoreRequest:
    return ScoreRequest(items=list(items), deadline_s=deadline_s)


class Exchangeable(FakeLiveGenerator):
    """A scripted engine whose script is exchanged with its weights."""

    def __init__(self, scripts: dict[str, Script], delay_s: Callable[[Prompt, int], float] | None = None) -> None:
        super().__init__(ScriptedGenerator(scripts["/first"]), delay_s)
        self.scripts = scripts
        self.num_reloads = 0

    async def reload(self, folder: Path) -> None:
        if str(folder) not in self.scripts:
            raise InputError(f"model folder {folder}: another architecture")
        await asyncio.sleep(0)
        self.num_reloads += 1
        self.generator = ScriptedGenerator(self.scripts[str(folder)])


def yes(prompt: Prompt, chance: object) -> str:
    return "Claim: a star.\nVerdict: Yes"


def sees(prompt: Prompt, chance: object) -> str:
    """A judge that looks: right about the canary's circle, and lost without it."""
    grey = bool(prompt.images) and prompt.images[0].getpixel((0, 0)) == (128, 128, 128)
    return f"Verdict: {'Yes' if 'yellow' in prompt.text and not grey else 'No'}"


def replica(
    script: Script = yes,
    *,
    scripts: dict[str, Script] | None = None,
    loaded: Loaded | None = None,
    **more: object,
) -> Replica:
    engine = Exchangeable({"/first": script} | (scripts or {}), **more)  # type: ignore[arg-type]
    return Replica(ServingConfig(judge=JUDGE), engine, FIRST, loaded)


def service(script: Script = yes, *, delay_s: float = 0.0, max_images: int = 2, **limits: object) -> Service:
    """A service in front of one replica without a dispatcher; `asked` counts tasks."""
    config = ServingConfig.model_validate({"judge": JUDGE, "limits": limits, "engine": {"max_images": max_images}})
    engine = replica(script, delay_s=lambda prompt, place: delay_s)

    async def ask(task: Task, model: Model) -> Outcome:
        (outcome,) = await engine.judge([task], model)
        return outcome

    made = Service(config, ask, Metrics(), FIRST)
    made.engine = engine._generator  # type: ignore[attr-defined]
    return made
