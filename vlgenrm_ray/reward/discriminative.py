"""Training of a discriminative judge: the Bradley-Terry objective on preference pairs, without critiques.

    loss = -log sigmoid(score(chosen) - score(rejected))

The score of a response is the log-odds of the verdict Yes against No directly after the judge's direct prompt, which is
a linear head on the last hidden state: the difference of two rows of the language-model head. So the head begins with
the verdict of the base model, needs no weights of its own, and the export is an ordinary model folder that every engine
loads. Its reward is sigmoid(score) = p(Yes) / (p(Yes) + p(No)), in (0, 1).

The workers' loop is that of `training_loop`; an example of it is a pair, which has two rows in a batch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.data.mapped_records import MappedRecords
from vlgenrm_ray.engines.contracts import Refusal
from vlgenrm_ray.engines.model_folder import JUDGE_PROMPT
from vlgenrm_ray.engines.vlm_batch import Batch, TextError, Tokens
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.verdict import NO, YES
from vlgenrm_ray.records import Dropped, ExampleKind, ImageRef, Preference, Side
from vlgenrm_ray.reward.balance import ExampleTraits
from vlgenrm_ray.reward.training_data import MeasuredExample
from vlgenrm_ray.reward.training_loop import BatchRow, TrainingJob, TrainingWorker, run_worker

if TYPE_CHECKING:
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """The prompts of both sides of one preference pair."""

    id: str
    images: tuple[ImageRef, ...]
    prompts: dict[Side, str]
    """User message of each side, without the chat template."""
    refusal: Refusal | None
    """Reason why the judge cannot score one of the sides, if it cannot."""


class PairList:
    """Preference pairs as a discriminative judge sees them."""

    def __init__(self, preferences: MappedRecords[Preference], judge: JudgeConfig) -> None:
        self._preferences = preferences
        self._judge: Judge[None] = Judge(judge.with_kind("discriminative"), None)

    def __len__(self) -> int:
        return len(self._preferences)

    def __getitem__(self, index: int) -> PairExample:
        preference = self._preferences[index]
        question = preference.question
        inputs = {
            side: JudgeInput(id="", images=(), question=question.text, response=preference.response(side))
            for side in Side
        }
        refusals = (self._judge.refusal(item) for item in inputs.values())
        return PairExample(
            id=preference.id,
            images=question.images,
            prompts={side: self._judge.prompt(item, ()).text for side, item in inputs.items()},
            refusal=next((refusal for refusal in refusals if refusal is not None), None),
        )


def train_discriminative_worker(job: TrainingJob) -> None:
    """Run one worker. Entry point under Ray Train."""
    run_worker(job, DiscriminativeWorker)


class DiscriminativeWorker(TrainingWorker):
    """One rank of the training on pairs."""

    rows_per_example = 2

    def read_examples(self, job: TrainingJob) -> PairList:
        """Return the preference pairs."""
        return PairList(self.map_records(Preference), job.judge)

    def measure(self, indices: range) -> tuple[list[MeasuredExample], list[Dropped]]:
        """Measure the pairs at `indices`; drop those that cannot be trained on."""
        measured: list[MeasuredExample] = []
        dropped: list[Dropped] = []
        verified: set[str] = set()
        for index in indices:
            pair = self.examples[index]
            try:
                for image in pair.images:
                    if image.uri not in verified:
                        images.size(images.verify(image, self.config.images), self.config.images, image.uri)
                        verified.add(image.uri)
                length = 2 * max(len(tokens) for tokens in self._encode(pair))
            except ImageError as error:
                dropped.append(_drop(pair, error.reason, error.detail))
                continue
            except TextError as error:
                dropped.append(_drop(pair, DropReason.MALFORMED_ROW, str(error)))
                continue
            if pair.refusal is not None:
                dropped.append(_drop(pair, pair.refusal.reason, pair.refusal.detail))
            elif length > self.config.tokens_per_batch:
                detail = (
                    f"{length} tokens of both sides, limit {self.config.tokens_per_batch} (training.tokens_per_batch)"
                )
                dropped.append(_drop(pair, DropReason.EXAMPLE_TOO_LONG, detail))
            else:
                # Pairs have no verdict to balance, and one loss each.
                measured.append(MeasuredExample(index, length, 1, ExampleTraits(ExampleKind.DIRECT, "", 1.0)))
        return measured, dropped

    def encode_rows(self, example: PairExample, weight: float) -> list[BatchRow]:
        """Return the rows of the chosen and the rejected side. No token has a weight: the loss is taken after them."""
        return [(tokens, example.images, 0.0) for tokens in self._encode(example)]

    def take_step(self, learner: "Learner", batches: Sequence[Batch], *, denominator: float, lr: float) -> "StepResult":
        """Take one optimizer step on the Bradley-Terry loss."""
        words = self._verdict_ids
        return learner.step_pairs(batches, positive=words[YES], negative=words[NO], denominator=denominator, lr=lr)

    def exported_texts(self) -> dict[str, str]:
        """Return the judge's prompt."""
        return {JUDGE_PROMPT: prompts.load(self.job.judge.verdict_prompt) + "\n"}

    def probe(self, learner: "Learner", measured: Sequence[MeasuredExample]) -> list[dict[str, Any]]:
        """Compute rewards of some training pairs with the trained model, before the export."""
        probes: list[dict[str, Any]] = []
        for m in measured[: self.config.num_probes]:
            pair = self.examples[m.index]
            batch = self.encoder.batch(self.encode_rows(pair, 0.0))
            for side, probabilities in zip(Side, learner.word_probabilities(batch, self._verdict_ids), strict=True):
                mass = probabilities[YES] + probabilities[NO]
                probes.append(
                    {
                        "id": f"{pair.id}/{side.value}",
                        "images": [asdict(image) for image in pair.images],
                        "prompt": pair.prompts[side],
                        "prefix": "",
                        "p_yes": probabilities[YES] / mass if mass else None,
                        "verdict_mass": mass,
                    }
                )
        return probes

    def _encode(self, pair: PairExample) -> list[Tokens]:
        return [self.encoder.encode_prefix(pair.images, pair.prompts[side], "") for side in Side]

    @cached_property
    def _verdict_ids(self) -> dict[str, tuple[int, ...]]:
        return self.encoder.vocabulary.token_ids((YES, NO))


def _drop(pair: PairExample, reason: DropReason, detail: str) -> Dropped:
    return Dropped(stage="training", id=pair.id, reason=reason.value, detail=detail)
