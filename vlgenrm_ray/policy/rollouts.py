"""A policy's samples: groups of one question, from an engine whose weights are exchanged while it runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.contracts import PolicyGenerator, Prompt, Refused, Sample, Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig, stay_in_process
from vlgenrm_ray.engines.weight_sync import Part, Weights
from vlgenrm_ray.engines.weight_transfer import Phase
from vlgenrm_ray.records import Question, Rollout
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

UNSCORED = "unscored"
_DECODERS = 8
"""Threads that open images; Pillow decodes outside Python's lock."""

Ref = TypeVar("Ref")
Group = tuple[Rollout, ...]
"""The samples of one question."""
Build = Callable[[VllmConfig], PolicyGenerator]
"""Starts an engine, in the process that owns it."""


class RolloutsConfig(Settings):
    """Who samples, and how."""

    engine: VllmConfig = VllmConfig()
    """`model` and `logprobs` are set by the run."""
    actors: int = Field(default=1, ge=1)
    """Engines, each with a copy of the policy."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    """CPUs (hence threads) of each."""
    num_gpus: float = Field(default=0.0, ge=0.0)
    """GPUs of each."""
    group_size: int = Field(default=8, ge=1)
    """Samples per question; they share its prefill."""
    temperature: float = Field(default=1.0, gt=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Of the likeliest tokens only so many are sampled for training as have this probability together. What is cut off
    cannot be learnt; nor can a judge's weakness for odd texts, which one lucky sample would begin. Importance weights
    tell of it: the sampler's probabilities are those of what is left."""
    evaluation_temperature: float = Field(default=0.0, ge=0.0)
    """Of the answers to held-out questions, one each; 0: the likeliest."""
    max_tokens: int = Field(default=128, ge=1)
    """Longest response, its end included."""
    restarts: int = Field(default=3, ge=0)
    """Times in a row that a lost engine is started again, none of which finished a group, before the run stops."""
    start_timeout_s: float = Field(default=900.0, gt=0.0)
    """Longest that an engine may take to start."""
    stall_timeout_s: float = Field(default=900.0, gt=0.0)
    """Longest that an engine with questions may take until the next group of samples is finished. One that takes longer
    is taken to hang, and is treated as lost."""

    def sampling(self) -> Sampling:
        """For training."""
        return Sampling(
            n=self.group_size,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            logprobs=True,
        )

    def answering(self) -> Sampling:
        """For evaluation."""
        return Sampling(n=1, temperature=self.evaluation_temperature, max_tokens=self.max_tokens, logprobs=True)

    def engine_of(self, model: str) -> VllmConfig:
        """The engine's settings for a model folder."""
        return self.engine.model_copy(update={"model": model, "logprobs": "sampled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question of a step."""

    question: Question
    step: int
    seed: int
    occasion: str = "s"
    """Letter before the step in a rollout's id: `s`, or `e` for an evaluation."""

    def id(self, number: int) -> str:
        """Of the sample with that number."""
        return f"{self.question.id}/{self.occasion}{self.step}/r{number}"


class RolloutEngine:
    """One engine with the policy's present weights; says one thing at a time. Knows nothing of Ray."""

    def __init__(self, config: VllmConfig, limits: ImageLimits, build: Build) -> None:
        """Start the engine. Raises as `build` does."""
        stay_in_process()
        self.limits = limits
        self.generator = build(config)
        self.version = 0
        """0: the weights of the model folder."""

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Iterator[tuple[int, Group]]:
        """Groups with their place in `asked`, as they are finished: `sampling.n` rollouts each, none with a reward.

        A question that cannot be asked has rollouts without text, whose status says why. Raises EngineLostError.
        """
        with ThreadPoolExecutor(_DECODERS) as threads:
            shown = list(threads.map(self._open, [one.question for one in asked]))
        able: list[tuple[int, Prompt]] = []
        for place, (one, picture) in enumerate(zip(asked, shown, strict=True)):
            if isinstance(picture, Refused):
                yield place, self._group(one, picture, sampling.n)
            else:
                able.append((place, Prompt(images=(picture,), text=one.question.text)))
        seeds = [asked[place].seed for place, _ in able]
        for number, outcome in self.generator.as_finished([prompt for _, prompt in able], sampling, seeds):
            place = able[number][0]
            yield place, self._group(asked[place], outcome, sampling.n)

    def load(self, weights: Weights[Ref], parts: Callable[[], Iterable[Part]]) -> int:
        """Take new weights; their version. `parts` gets `weights.parts`, once to check them and once to load them.

        Raises WeightSyncError where they did not arrive as they were sent (the present version stays) or do not fit.
        """
        weight_sync.check(parts(), weights, self.version)
        self.generator.load_weights(tensor for part in parts() for tensor in part.tensors())
        self.version = weights.version
        return self.version

    def transfer(self, phase: Phase, info: Mapping[str, Any]) -> Any:
        """Take part in a transfer of weights from GPU to GPU. Raises WeightSyncError, EngineLostError."""
        found = self.generator.transfer(phase, info)
        if phase is Phase.FINISH:
            self.version = info["version"]
        return found

    def _open(self, question: Question) -> "PIL.Image.Image | Refused":
        try:
            return images.read(question.image, self.limits)
        except ImageError as error:
            return Refused(reason=error.reason, detail=error.detail)

    def _group(self, asked: Asked, outcome: Sequence[Sample] | Refused, num_samples: int) -> Group:
        if isinstance(outcome, Refused):
            return tuple(self._rollout(asked, number, None, outcome.reason.value) for number in range(num_samples))
        return tuple(self._rollout(asked, number, sample, UNSCORED) for number, sample in enumerate(outcome))

    def _rollout(self, asked: Asked, number: int, sample: Sample | None, status: str) -> Rollout:
        return Rollout(
            id=asked.id(number),
            question=asked.question,
            step=asked.step,
            version=self.version,
            ids=sample.ids if sample else (),
            logprobs=sample.logprobs if sample else (),
            text=sample.text if sample else "",
            finish=sample.finish if sample else "",
            reward=None,
            status=status,
        )
