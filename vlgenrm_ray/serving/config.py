"""How a judge is served."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.experts.expert import ExpertPipelineConfig
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.serving.auth import Tokens
from vlgenrm_ray.settings import Settings

_MIB = 1 << 20


class Limits(Settings):
    """What the service takes on."""

    max_body_mib: float = Field(default=64.0, gt=0.0)
    """Largest request body."""
    max_queue: int = Field(default=2048, ge=1)
    """Most items under way, waiting ones included; beyond it the answer is `overloaded` at once."""
    retry_after_s: int = Field(default=1, ge=0)
    """What a client is told to wait where the queue is full."""
    deadline_s: float = Field(default=300.0, gt=0.0)
    """For requests that name none."""
    cache_mib: float = Field(default=64.0, ge=0.0)
    """Memory for results; 0 keeps none."""
    images_mib: float = Field(default=512.0, gt=0.0)
    """Memory for encoded images, to which requests refer by their hash."""
    max_chunk: int = Field(default=16, ge=1)
    """Most items handed to an engine replica in one call."""


class CanaryConfig(Settings):
    """What a new version must show before it serves: an image with a better and a worse response."""

    image: str = ""
    """Path of an image file; empty: the package's own picture, with the texts that go with it."""
    question: str = ""
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    min_margin: float = 0.0
    """The mean reward of the better responses must exceed that of the worse by more than this."""
    min_change: float = Field(default=0.005, ge=0.0)
    """Least mean change of the better responses' rewards when the image is swapped for a blank one."""

    @model_validator(mode="after")
    def _all_or_nothing(self) -> "CanaryConfig":
        given = [bool(value) for value in (self.image, self.question, self.better, self.worse)]
        if any(given) and not all(given):
            raise ValueError("a canary needs image, question, better and worse")
        return self


class ServedExperts(ExpertPipelineConfig):
    """Detector and matcher beside the judge, for `POST /v1/evidence`."""

    max_queue: int = Field(default=16, ge=1)
    """Most requests under way, waiting ones included; beyond it the answer is `overloaded` at once."""
    deadline_s: float = Field(default=30.0, gt=0.0)
    """Longest a request may take."""
    num_gpus: float = Field(default=0.0, ge=0.0)


class ServingConfig(Settings):
    """A served judge."""

    engine: VllmConfig = VllmConfig()
    """Its model is the one served first; a folder that every node sees."""
    judge: JudgeConfig = JudgeConfig()
    images: ImageLimits = ImageLimits()
    image_roots: tuple[str, ...] = ()
    """Folders below which requests may name image files; none: no files."""
    limits: Limits = Limits()
    canary: CanaryConfig = CanaryConfig()
    experts: ServedExperts | None = None
    """None: the service judges, and nothing else."""
    tokens: Tokens = Tokens()
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Engines; `auto`: from 1 to `max_replicas`, by the queue's depth."""
    max_replicas: int = Field(default=8, ge=1)
    upscale_delay_s: float = Field(default=10.0, ge=0.0)
    """How long the queue must be too deep before another engine is started (`auto`)."""
    downscale_delay_s: float = Field(default=300.0, ge=0.0)
    """How long an engine must be dispensable before it is stopped (`auto`)."""
    num_cpus: float = Field(default=1.0, ge=0.0)
    """Of each engine replica."""
    num_gpus: float = Field(default=0.0, ge=0.0)
