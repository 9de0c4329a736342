"""Image, prompt and completion -> the tensors of a Qwen-VL-like model, by the model's own processor and template.

Tokens and pixels are made apart: token counts plan the batches before an image is decoded, and one image is processed
once however many examples show it. Completions are tokenised by themselves, as they were when the model wrote them,
so prompt tokens are exactly those of the chat template with `add_generation_prompt`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.shared_prompts import Sharing
from vlgenrm_ray.engines.tokens import Vocabulary
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import ImageRef

if TYPE_CHECKING:
    import torch


class TextError(ValueError):
    """An example whose tokens would not be one image, a prompt and a completion."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One user turn with an image, and what the assistant says."""

    ids: tuple[int, ...]
    """Prompt (one placeholder per image token), then completion."""
    num_prompt: int
    """Tokens before the first one the loss is taken on."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.num_prompt]

    @property
    def num_targets(self) -> int:
        return len(self.ids) - self.num_prompt


@dataclass(frozen=True, slots=True)
class Pixels:
    """A processed image: `values` [patches, channels x patch volume], `grid` (frames, rows, columns) of patches."""

    values: "torch.Tensor"
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples of up to T tokens, in R rows of L, padded on the right: each in its own, or several of one prompt in
    one."""

    inputs: "dict[str, torch.Tensor]"
    """`input_ids`, `attention_mask`, `mm_token_type_ids` [R, L]; `image_grid_thw` [R, 3]; `pixel_values` of the
    distinct images, in the order of `shown`."""
    shown: tuple[int, ...]
    """Which of the distinct images each row shows."""
    weights: "torch.Tensor"
    """[B, T] float32: how much the loss of each token counts; 0 on prompt, image and padding tokens."""
    counts: bool = True
    """False for a filler, run only because the other workers have one more batch."""
    sharing: Sharing | None = None
    """None where every example has its own row: then R is B, and L is T."""

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def targets(self) -> "torch.Tensor":
        """[B, T] boolean: the tokens that have a weight. An example's first never has."""
        return self.weights != 0

    @property
    def words(self) -> "torch.Tensor":
        """[N]: the N targets, in the order of a mask's True."""
        return self.inputs["input_ids"][self.targets] if self.sharing is None else self.sharing.words

    @property
    def before(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Rows and columns of the inputs, [N] each, in which what stands before each target is."""
        if self.sharing is not None:
            return self.sharing.before
        rows, columns = self.targets.nonzero(as_tuple=True)
        return rows, columns - 1

    def spread(self, values: "torch.Tensor") -> "torch.Tensor":
        """Values [N] of the N targets -> [B, T], 0 elsewhere; with their gradient."""
        return values.new_zeros(self.weights.shape).masked_scatter(self.targets, values)

    def to(self, device: "torch.device") -> "Batch":
        """The batch on a device; itself where it is there already."""
        if self.weights.device == device:
            return self
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        sharing = None if self.sharing is None else self.sharing.to(device)
        return Batch(inputs, self.shown, self.weights.to(device), self.counts, sharing)


class VlmEncoder:
    """Makes tensors for one model. Not thread-safe for writing; one per worker."""

    def __init__(
        self,
        model: Path,
        limits: ImageLimits,
        *,
        image_processor: Mapping[str, Any] | None = None,
        cache_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        """`image_processor`: its settings, where they are not the folder's; those of the engine that is to see the same
        prompts. `cache_bytes`: processed images kept, least recently used go first. Raises InputError.
        """
        from transformers import AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(
                model, trust_remote_code=False, **(image_processor or {})
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"model folder {model}: its processor cannot be loaded ({error}); save the processor into it as well"
            ) from error
        self.tokenizer: Any = self.processor.tokenizer
        self.vocabulary = Vocabulary(self.tokenizer.backend_tokenizer)
        self.image_token: int = self.processor.image_token_id
        self.pad_token: int = _pad_token(self.tokenizer)
        self._merged: int = self.processor.image_processor.merge_size**2
        self._end = self._end_of_turn()
        self._limits = limits
        self._cache: OrderedDict[str, Pixels] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes

    # -- text --------------------------------------------------------------------------------------------------

    def encode(self, image: ImageRef, prompt: str, completion: str) -> Tokens:
        """Tokens of a whole exchange, end of turn included. Raises TextError for an empty completion."""
        begun = self.encode_prefix(image, prompt, completion)
        if not begun.num_targets:
            raise TextError("the completion has no tokens")
        return Tokens((*begun.ids, self._end), begun.num_prompt)

    def rollout(self, image: ImageRef, prompt: str, ids: Sequence[int]) -> Tokens:
        """Tokens of a prompt and of what was generated after it, exactly as it was: nothing added, nothing read anew.

        Raises TextError for none, or for one that stands for an image.
        """
        if not ids or self.image_token in ids:
            raise TextError("a rollout has one or more tokens, none of them an image's")
        head = self._prompt(image, prompt)
        return Tokens((*head, *ids), len(head))

    def encode_prefix(self, image: ImageRef, prompt: str, prefix: str) -> Tokens:
        """Tokens of an assistant's turn begun with `prefix` and not ended: what an engine sees that continues it."""
        head = self._prompt(image, prompt)
        return Tokens((*head, *self._ids(self.vocabulary.neutral(prefix))), len(head))

    def _prompt(self, image: ImageRef, prompt: str) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": self.vocabulary.neutral(prompt)}]
        ids = self._ids(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )
        at = ids.index(self.image_token)
        return ids[:at] + [self.image_token] * self.num_image_tokens(image.width, image.height) + ids[at + 1 :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _end_of_turn(self) -> int:
        """The token the chat template puts after an assistant's words."""
        said = "x"
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": said}]
        text: str = self.processor.apply_chat_template(turn, tokenize=False)
        after = self._ids(text[text.rindex(said) + len(said) :].strip())
        return after[0] if after and after[0] in self.vocabulary.special else int(self.tokenizer.eos_token_id)

    # -- images ------------------------------------------------------------------------------------------------

    def num_image_tokens(self, width: int, height: int) -> int:
        """Tokens an image of this size takes, in pixels; nothing is decoded."""
        return int(self.processor.image_processor.get_number_of_image_patches(height, width, {})) // self._merged

    def pixels(self, ref: ImageRef) -> Pixels:
        """The processed image, from the cache if it was seen. Raises images.ImageError."""
        if (known := self._cache.get(ref.sha256)) is not None:
            self._cache.move_to_end(ref.sha256)
            return known
        made = self.processor.image_processor(images=[images.read(ref, self._limits)], return_tensors="pt")
        frames, rows, columns = made["image_grid_thw"][0].tolist()
        new = Pixels(made["pixel_values"], (frames, rows, columns))
        self._cache[ref.sha256] = new
        self._cached += new.values.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].values.nbytes
        return new

    # -- both --------------------------------------------------------------------------------------------------

    def batch(
        self,
        examples: Sequence[tuple[Tokens, ImageRef, float]],
        *,
        counts: bool = True,
        families: Sequence[range] | None = None,
    ) -> Batch:
        """Examples as (tokens, image, weight of each of its completion tokens) -> one padded batch.

        `families`: examples in a row each, which have a prompt and an image in common and weights that are not 0; all
        of them, in their order. None: each has its own.
        """
        import torch

        weights = torch.zeros((len(examples), max(len(tokens) for tokens, _, _ in examples)))
        for i, (tokens, _, weight) in enumerate(examples):
            weights[i, tokens.num_prompt : len(tokens)] = weight
        if families is not None and not all(weight for _, _, weight in examples):
            raise ValueError("an example of no weight has a row of its own")
        together = [range(i, i + 1) for i in range(len(examples))] if families is None else families
        rows = [shared_prompts.row([examples[i][0] for i in family]) for family in together]
        refs = [examples[family.start][1] for family in together]
        ids = torch.full((len(rows), max(len(row.ids) for row in rows)), self.pad_token)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        pixels = [self.pixels(ref) for ref in refs]
        distinct = list(dict.fromkeys(ref.sha256 for ref in refs))
        shown = tuple(distinct.index(ref.sha256) for ref in refs)
        grids = torch.tensor([p.grid for p in pixels])
        expected = grids.prod(-1).div(self._merged, rounding_mode="floor")
        # Sizes in the records plan the batches; an image of another size would shift every token after it.
        if not torch.equal((ids == self.image_token).sum(-1), expected):
            raise TextError("an image's size differs from its record's")
        return Batch(
            inputs={
                "input_ids": ids,
                "attention_mask": mask,
                "mm_token_type_ids": (ids == self.image_token).int(),
                "pixel_values": torch.cat([pixels[shown.index(i)].values for i in range(len(distinct))]),
                "image_grid_thw": grids,
            },
            shown=shown,
            weights=weights,
            counts=counts,
            sharing=shared_prompts.sharing(rows) if len(rows) < len(examples) else None,
        )


def _pad_token(tokenizer: Any) -> int:
    """Any token does: padding is masked."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
