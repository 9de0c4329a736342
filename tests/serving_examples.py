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
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.in_process import InProcessEngine
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.model_version import ModelVersion
from vlgenrm_ray.serving.service import Service

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4)
FIRST = ModelVersion(number=0, folder="/first", name="first-0")


def png(shade: int = 0, side: int = 16) -> bytes:
    """An encoded image of one shade of red."""
    target = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(target, "PNG")
    return target.getvalue()


def item(response: str = "There is a star.", **fields: object) -> ScoreItem:
    return ScoreItem.model_validate({"question": "What is there?", "response": response} | fields)


def request(*items: ScoreItem, deadline_s: float | None = None) -> ScoreRequest:
    return ScoreRequest(items=list(items), deadline_s=deadline_s)


class FakeReloadableGenerator(FakeLiveGenerator):
    """A scripted engine with one script per model folder."""

    def __init__(self, scripts: dict[str, Script], delay_s: Callable[[Prompt, int], float] | None = None) -> None:
        super().__init__(ScriptedGenerator(scripts["/first"]), delay_s)
        self.scripts = scripts
        self.num_reloads = 0
        self.closed = False

    async def reload(self, folder: Path) -> None:
        if str(folder) not in self.scripts:
            raise InputError(f"model folder {folder}: another architecture")
        await asyncio.sleep(0)
        self.num_reloads += 1
        self.generator = ScriptedGenerator(self.scripts[str(folder)])

    def is_alive(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True


def says_yes(prompt: Prompt, random: object) -> str:
    return "Claim: a star.\nVerdict: Yes"


def sees(prompt: Prompt, random: object) -> str:
    """A judge that looks: right about the canary's circle, and wrong about a blank image."""
    blank = bool(prompt.images) and prompt.images[0].getpixel((0, 0)) == (128, 128, 128)
    return f"Verdict: {'Yes' if 'yellow' in prompt.text and not blank else 'No'}"


async def trust_folder(model: ModelVersion) -> ModelVersion:
    """Stands in for `verify_loaded`: scripted models have no folders."""
    return model


def worker(
    script: Script = says_yes,
    *,
    scripts: dict[str, Script] | None = None,
    delay_s: Callable[[Prompt, int], float] | None = None,
    **checks: object,
) -> EngineWorker:
    """A worker over a scripted engine; `scripts` are those of further model folders."""
    engine = FakeReloadableGenerator({"/first": script} | (scripts or {}), delay_s)
    checks = {"verify": trust_folder, "check": lambda model: None} | checks
    return EngineWorker(ServingConfig(judge=JUDGE), engine, FIRST, **checks)  # type: ignore[arg-type]


def service(
    script: Script = says_yes,
    *,
    delay_s: float = 0.0,
    max_images: int = 2,
    blind_judging: str = "allow",
    **limits: object,
) -> Service:
    """A service over one scripted worker; `service.generator` is its scripted engine."""
    config = ServingConfig.model_validate(
        {"judge": JUDGE, "limits": limits, "engine": {"max_images": max_images}, "blind_judging": blind_judging}
    )
    engine_worker = worker(script, delay_s=lambda prompt, place: delay_s)

    async def start() -> EngineWorker:
        return engine_worker

    served = Service(config, InProcessEngine(start), ServiceMetrics(), FIRST)
    served.generator = engine_worker._generator  # type: ignore[attr-defined]
    return served
