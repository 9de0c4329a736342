"""Settings of the served judge: the section `serving` of a recipe."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.experts.expert import ExpertPipelineConfig
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.serving.auth import ApiTokens
from vlgenrm_ray.settings import RemovedSetting, Settings


class ServingLimits(Settings):
    """Bounds of requests, queue and memory."""

    removed: ClassVar = {
        "retry_after_s": RemovedSetting(1, "clients may wait longer by themselves"),
        "max_chunk": RemovedSetting(16, "set the number of sequences decoded at once by engine.max_num_seqs instead"),
    }

    max_body_mib: float = Field(default=64.0, gt=0.0)
    """Largest request body in MiB; larger ones are answered with 413."""
    bodies_mib: float = Field(default=160.0, gt=0.0)
    """Request bodies of 64 KiB and more in memory at a time, in MiB. Further ones wait, at most for `deadline_s`. Each
    takes about twice as much memory as it has bytes."""
    max_queue: int = Field(default=2048, ge=1)
    """Most items under way, waiting ones included. Beyond it an item is `overloaded` at once."""
    deadline_s: float = Field(default=300.0, gt=0.0)
    """Deadline of requests that name none, in seconds."""
    cache_mib: float = Field(default=64.0, ge=0.0)
    """Memory for cached results in MiB; 0 disables the cache."""
    images_mib: float = Field(default=128.0, gt=0.0)
    """Memory for encoded images in MiB, to which requests refer by their hash, and as much again for those of items
    under way. Items wait until theirs have room."""
    max_chat_tokens: int = Field(default=8192, ge=1)
    """Most tokens of an answer of the model itself, at `/v1/chat/completions`; also for requests that name none."""


class CanaryConfig(Settings):
    """Test that new weights must pass before they serve: an image with better and worse responses."""

    image: str = ""
    """Path of an image file. Empty: the built-in example, with its own question and responses."""
    question: str = ""
    """Question about the image."""
    better: tuple[str, ...] = ()
    """Right responses."""
    worse: tuple[str, ...] = ()
    """Wrong responses."""
    min_margin: float = 0.0
    """The mean reward of the better responses must exceed that of the worse ones by more than this."""
    min_change: float = Field(default=0.005, ge=0.0)
    """Least mean change of the better responses' rewards when the image is replaced by a blank one."""

    @model_validator(mode="after")
    def _check_complete(self) -> "CanaryConfig":
        is_set = [bool(value) for value in (self.image, self.question, self.better, self.worse)]
        if any(is_set) and not all(is_set):
            raise ValueError("a canary needs image, question, better and worse")
        return self


class ServedExpertsConfig(ExpertPipelineConfig):
    """Experts next to the judge, for `POST /v1/evidence`."""

    max_queue: int = Field(default=16, ge=1)
    """Most requests under way, waiting ones included. Beyond it the answer is `overloaded` at once."""
    deadline_s: float = Field(default=30.0, gt=0.0)
    """Longest time of a request in seconds."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of the experts' process."""


class JudgeServingConfig(Settings):
    """Settings that every service of a judge has: `vlgenrm serve` as well as the judge service of a run."""

    engine: VllmConfig = VllmConfig()
    """vLLM engine. Its model serves until it is swapped; every node must see the model's folder."""
    judge: JudgeConfig = JudgeConfig()
    """Defaults of the judge; an item may set mode, num_critiques, aggregator and seed itself."""
    images: ImageLimits = ImageLimits(max_pixels=16 * 1024 * 1024)
    """Bounds of a single image. Larger JPEGs are decoded at a half, a quarter or an eighth of their size."""
    blind_judging: Literal["refuse", "text_only", "allow"] = "refuse"
    """Items without an image. `refuse`: no reward, status `no_image`. `text_only`: judged, unless a placeholder or
    `image_expected` says that they are about an image. `allow`: judged by their text alone."""
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of engines. `auto`: 1 to `max_replicas`, by the queue's depth."""
    max_replicas: int = Field(default=8, ge=1)
    """Most engines, for `replicas: auto`."""
    num_cpus: float = Field(default=1.0, ge=0.0)
    """CPUs of each engine."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each engine."""


class ServingConfig(JudgeServingConfig):
    """Settings of a service for all kinds of clients: a served judge with experts, gateways and tokens."""

    limits: ServingLimits = ServingLimits()
    """Limits of requests, queue, memory and time."""
    canary: CanaryConfig = CanaryConfig()
    """Test that a new model must pass before it serves."""
    upscale_delay_s: float = Field(default=10.0, ge=0.0)
    """Seconds that the queue must be too deep before another engine is started (`replicas: auto`)."""
    downscale_delay_s: float = Field(default=300.0, ge=0.0)
    """Seconds that an engine must be dispensable before it is stopped (`replicas: auto`)."""
    image_roots: tuple[str, ...] = ()
    """Folders below which requests may name image files. Empty: no files."""
    experts: ServedExpertsConfig | None = None
    """Experts behind `POST /v1/evidence`. None: the service answers it with 404."""
    gateways: tuple[str, ...] = ()
    """Import paths `package.module:router` of additional gateways; see `serving.gateways`. The ingress must be able to
    import them."""
    failed_reward: float | None = Field(default=None, ge=0.0, le=1.0)
    """Reward in [0, 1] of samples without one, at gateways of trainers that cannot mask a sample. None: such a sample
    is an HTTP error. VLGENRM_FAILED_REWARD or `?failed_reward=` in the address name it as well. Each use is counted."""
    tokens: ApiTokens = ApiTokens()
    """Hashes of the tokens, read from the environment at start."""
