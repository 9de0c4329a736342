"""Tensors of a Qwen-VL-like model from image, prompt and completion, by the model's own processor and chat template.

Tokens and pixels are computed separately: batches are planned from token counts before an image is decoded, and an
image is processed once for all its examples. Completions are tokenised by themselves, as when the model generated them,
so the prompt's tokens are exactly those of the chat template with `add_generation_prompt`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines import model_families, shared_prompts
from vlgenrm_ray.engines.shared_prompts import RowLayout
from vlgenrm_ray.engines.tokens import TokenVocabulary
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import ImageRef

if TYPE_CHECKING:
    import torch


class TextError(ValueError):
    """An example whose tokens are not one image, a prompt and a completion."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a user turn with one image, and of the assistant's completion."""

    ids: tuple[int, ...]
    """Prompt (one placeholder per image token), then completion."""
    num_prompt: int
    """Number of prompt tokens; the loss starts after them."""

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
    """B examples of up to T tokens, in R rows of L tokens padded on the right. A row holds one example, or several with
    the same prompt."""

    inputs: "dict[str, torch.Tensor]"
    """`input_ids`, `attention_mask`, `mm_token_type_ids` [R, L]; `image_grid_thw` [I, 3] of the rows' I images;
    `pixel_values` of the distinct images, in the order of `image_indices`."""
    image_indices: tuple[int, ...]
    """Index of each of the rows' images, in order, among the distinct images."""
    weights: "torch.Tensor"
    """[B, T] float32: weight of each token in the loss; 0 for prompt, image and padding tokens."""
    counts: bool = True
    """False for a filler, computed only because the other workers have one more batch."""
    layout: RowLayout | None = None
    """Layout of rows with several examples. None: every example has its own row, R = B and L = T."""

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def targets(self) -> "torch.Tensor":
        """Mask [B, T] of the tokens with a weight. The first token of an example never has one."""
        return self.weights != 0

    @property
    def target_ids(self) -> "torch.Tensor":
        """Token ids of the N targets, [N], in the order of the mask `targets`."""
        return self.inputs["input_ids"][self.targets] if self.layout is None else self.layout.target_ids

    @property
    def predictor_positions(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """Rows and columns [N] of the inputs' token before each target, whose output predicts the target."""
        if self.layout is not None:
            return self.layout.predictor_positions
        rows, columns = self.targets.nonzero(as_tuple=True)
        return rows, columns - 1

    def scatter(self, values: "torch.Tensor") -> "torch.Tensor":
        """Place values [N] of the targets in a tensor [B, T] that is 0 elsewhere; differentiable."""
        return values.new_zeros(self.weights.shape).masked_scatter(self.targets, values)

    def to(self, device: "torch.device") -> "Batch":
        """Return the batch on a device; itself if it is there already."""
        if self.weights.device == device:
            return self
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        layout = None if self.layout is None else self.layout.to(device)
        return Batch(inputs, self.image_indices, self.weights.to(device), self.counts, layout)


class VlmEncoder:
    """Encoder for one model: text to tokens, images to pixels, examples to batches. One per worker; not thread-safe."""

    def __init__(
        self,
        model: Path,
        limits: ImageLimits,
        *,
        image_processor: Mapping[str, Any] | None = None,
        cache_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        """Load the processor of a model.

        Args:
            model: Hugging Face folder.
            limits: Limits of the images.
            image_processor: Settings that replace those of the folder; equal to those of the engine that generates
                from the same prompts.
            cache_bytes: Size of the cache of processed images, in bytes; the least recently used are evicted.

        Raises:
            InputError: The processor cannot be loaded.
        """
        from transformers import AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(
                model,
                trust_remote_code=False,
                **model_families.image_processor_settings(model, image_processor or {}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"model folder {model}: its processor cannot be loaded ({error}); save the processor into it as well"
            ) from error
        self.tokenizer: Any = self.processor.tokenizer
        self.vocabulary = TokenVocabulary(self.tokenizer.backend_tokenizer)
        self.image_token: int = self.processor.image_token_id
        self.pad_token: int = _pad_token(self.tokenizer)
        self._merged: int = self.processor.image_processor.merge_size**2
        self._end = self._end_of_turn()
        self._limits = limits
        self._cache: OrderedDict[str, Pixels] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes

    # -- text --------------------------------------------------------------------------------------------------

    def encode(self, refs: Sequence[ImageRef], prompt: str, completion: str) -> Tokens:
        """Encode prompt and completion, with the end of turn. Raises TextError for an empty completion."""
        tokens = self.encode_prefix(refs, prompt, completion)
        if not tokens.num_targets:
            raise TextError("the completion has no tokens")
        return Tokens((*tokens.ids, self._end), tokens.num_prompt)

    def encode_rollout(self, refs: Sequence[ImageRef], prompt: str, ids: Sequence[int]) -> Tokens:
        """Encode a prompt and append the generated tokens `ids` unchanged.

        Raises TextError if there are none, or if one of them is an image token.
        """
        if not ids or self.image_token in ids:
            raise TextError("a rollout has one or more tokens, none of them an image's")
        prompt_ids = self._prompt(refs, prompt)
        return Tokens((*prompt_ids, *ids), len(prompt_ids))

    def encode_prefix(self, refs: Sequence[ImageRef], prompt: str, prefix: str) -> Tokens:
        """Encode a prompt and the beginning of the assistant's turn, without an end of turn."""
        prompt_ids = self._prompt(refs, prompt)
        return Tokens((*prompt_ids, *self._ids(self.vocabulary.escape_special_tokens(prefix))), len(prompt_ids))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each generated token adds to the response; "" for special tokens."""
        special = self.vocabulary.special
        _, texts = self.vocabulary.split_text([id for id in ids if id not in special])
        remaining = iter(texts)
        return ["" if id in special else next(remaining) for id in ids]

    def _prompt(self, refs: Sequence[ImageRef], prompt: str) -> list[int]:
        text = {"type": "text", "text": self.vocabulary.escape_special_tokens(prompt)}
        content = [*({"type": "image"} for _ in refs), text]
        ids = self._ids(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )
        num_tokens = iter([self.num_image_tokens(ref.width, ref.height) for ref in refs])
        return [id for token in ids for id in [token] * (next(num_tokens) if token == self.image_token else 1)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _end_of_turn(self) -> int:
        """Return the token that the chat template puts after an assistant's turn."""
        answer = "x"
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
        text: str = self.processor.apply_chat_template(turn, tokenize=False)
        after = self._ids(text[text.rindex(answer) + len(answer) :].strip())
        return after[0] if after and after[0] in self.vocabulary.special else int(self.tokenizer.eos_token_id)

    # -- images ------------------------------------------------------------------------------------------------

    def num_image_tokens(self, width: int, height: int) -> int:
        """Return the number of tokens of an image of a size in pixels, without decoding it."""
        return int(self.processor.image_processor.get_number_of_image_patches(height, width, {})) // self._merged

    def pixels(self, ref: ImageRef) -> Pixels:
        """Process an image, or return it from the cache. Raises images.ImageError."""
        if (cached := self._cache.get(ref.sha256)) is not None:
            self._cache.move_to_end(ref.sha256)
            return cached
        processed = self.processor.image_processor(images=[images.read(ref, self._limits)], return_tensors="pt")
        frames, rows, columns = processed["image_grid_thw"][0].tolist()
        pixels = Pixels(processed["pixel_values"], (frames, rows, columns))
        self._cache[ref.sha256] = pixels
        self._cached += pixels.values.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].values.nbytes
        return pixels

    # -- batches -----------------------------------------------------------------------------------------------

    def batch(
        self,
        examples: Sequence[tuple[Tokens, Sequence[ImageRef], float]],
        *,
        counts: bool = True,
        shared_rows: Sequence[range] | None = None,
    ) -> Batch:
        """Build one padded batch.

        Args:
            examples: Tokens, images, and weight of each completion token.
            counts: False for a filler.
            shared_rows: Ranges of examples that share a row: all examples in their order, those of a range with equal
                prompt and images and a weight above 0. None: each example has its own row.

        Raises:
            ValueError: An example without weight would share a row.
            TextError: The size of an image differs from its record.
        """
        import torch

        weights = torch.zeros((len(examples), max(len(tokens) for tokens, _, _ in examples)))
        for i, (tokens, _, weight) in enumerate(examples):
            weights[i, tokens.num_prompt : len(tokens)] = weight
        if shared_rows is not None and not all(weight for _, _, weight in examples):
            raise ValueError("an example without weight needs a row of its own")
        ranges = [range(i, i + 1) for i in range(len(examples))] if shared_rows is None else shared_rows
        rows = [shared_prompts.build_row([examples[i][0] for i in group]) for group in ranges]
        refs_of_rows = [examples[group.start][1] for group in ranges]
        refs = [ref for refs_of_row in refs_of_rows for ref in refs_of_row]
        ids = torch.full((len(rows), max(len(row.ids) for row in rows)), self.pad_token)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        pixels = [self.pixels(ref) for ref in refs]
        distinct = list(dict.fromkeys(ref.sha256 for ref in refs))
        image_indices = tuple(distinct.index(ref.sha256) for ref in refs)
        grids = torch.tensor([p.grid for p in pixels])
        num_tokens = iter(grids.prod(-1).div(self._merged, rounding_mode="floor").tolist())
        expected = torch.tensor([sum(next(num_tokens) for _ in refs_of_row) for refs_of_row in refs_of_rows])
        # Batches are planned from the sizes in the records; an image of another size would shift all later tokens.
        if not torch.equal((ids == self.image_token).sum(-1), expected):
            raise TextError("an image's size differs from its record's")
        return Batch(
            inputs={
                "input_ids": ids,
                "attention_mask": mask,
                "mm_token_type_ids": (ids == self.image_token).int(),
                "pixel_values": torch.cat([pixels[image_indices.index(i)].values for i in range(len(distinct))]),
                "image_grid_thw": grids,
            },
            image_indices=image_indices,
            weights=weights,
            counts=counts,
            layout=shared_prompts.build_layout(rows) if len(rows) < len(examples) else None,
        )


def _pad_token(tokenizer: Any) -> int:
    """Return a token for padding. Any token is suitable, as padding is masked."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
