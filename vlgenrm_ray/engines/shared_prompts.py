"""Samples of one prompt as one row of a model: the prompt is computed once, and the samples do not see each other.

    token               prompt         first sample   second sample
    sample of token     0 0 0 0        1 1 1          2 2
    position            0 1 2 3        4 5 6          4 5

The outputs for a sample, and the gradient, equal those of the sample alone, except for rounding. The prompt of a group,
which consists mostly of image tokens, is computed once instead of once per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.vlm_batch import Batch, Tokens

_PADDING = -1


def divide_into_rows(
    num_prompt: int, completions: Sequence[int], *, width: int, tokens_per_row: int, samples_per_row: int
) -> list[range]:
    """Divide the samples of one prompt into rows at the lowest cost, among all even divisions.

    One row of many long samples would cost more than it saves, because attention covers all pairs of its tokens.

    Args:
        num_prompt: Tokens of the prompt.
        completions: Tokens of each completion.
        width: Hidden size of the decoder.
        tokens_per_row: Largest number of tokens in a row of several samples.
        samples_per_row: Largest number of samples in a row.

    Returns:
        One range of positions in `completions` per row.
    """
    number = len(completions)
    best = [range(i, i + 1) for i in range(number)]
    lowest_cost = sum(row_cost(num_prompt + length, shared=False, width=width) for length in completions)
    for num_rows in range(-(-number // samples_per_row), number):
        rows = [range(start, end) for start, end in pairwise(number * i // num_rows for i in range(num_rows + 1))]
        lengths = [num_prompt + sum(completions[row.start : row.stop]) for row in rows]
        if max(lengths) > tokens_per_row:
            continue
        if (cost := sum(row_cost(length, shared=True, width=width) for length in lengths)) < lowest_cost:
            best, lowest_cost = rows, cost
    return best


def row_cost(num_tokens: int, *, shared: bool, width: int) -> int:
    """Return the cost of a row, in units of 2 x width multiply-adds per layer.

    A layer has about 12 width^2 weights, and each pair of tokens in attention takes 4 x width more. The causal mask of
    a single sample saves half of the pairs; the mask of several samples is a tensor and saves none.
    """
    return num_tokens * (12 * width + (2 if shared else 1) * num_tokens)


def row_length(samples: "Sequence[Tokens]") -> int:
    """Return the number of tokens of a row of samples."""
    return samples[0].num_prompt + sum(tokens.num_targets for tokens in samples)


@dataclass(frozen=True, slots=True)
class SharedRow:
    """Samples of one prompt, with the prompt once."""

    ids: tuple[int, ...]
    sample_of_token: tuple[int, ...]
    """For each token: 0 if it belongs to the prompt, i if it belongs to the i-th sample."""
    position_offset: tuple[int, ...]
    """For each token: its column in the row minus its position in its own sample."""
    predictor_columns: tuple[int, ...]
    """For each sampled token: the column of the token before it in its own sample."""


def build_row(samples: "Sequence[Tokens]") -> SharedRow:
    """Build one row of samples. Raises ValueError if their prompts differ."""
    num_prompt = samples[0].num_prompt
    prompt = samples[0].prompt
    ids, sample_of_token, position_offset = list(prompt), [0] * num_prompt, [0] * num_prompt
    predictor_columns = list[int]()
    for number, tokens in enumerate(samples, start=1):
        if tokens.prompt != prompt:
            raise ValueError("samples of one row have one prompt")
        start = len(ids)
        ids += tokens.ids[num_prompt:]
        sample_of_token += [number] * tokens.num_targets
        position_offset += [start - num_prompt] * tokens.num_targets
        predictor_columns += [num_prompt - 1, *range(start, len(ids) - 1)] if tokens.num_targets else []
    return SharedRow(tuple(ids), tuple(sample_of_token), tuple(position_offset), tuple(predictor_columns))


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Layout of R rows of L tokens, N of them sampled; samples are numbered as in `SharedRow`."""

    sample_of_token: "torch.Tensor"
    """[R, L]; negative for padding."""
    position_offset: "torch.Tensor"
    """[R, L]."""
    target_ids: "torch.Tensor"
    """[N]: the sampled tokens, sample by sample."""
    predictor_positions: "tuple[torch.Tensor, torch.Tensor]"
    """[N] each: row and column of the token before each sampled token."""

    def to(self, device: "torch.device") -> "RowLayout":
        """Return the layout on a device."""
        rows, columns = self.predictor_positions
        return RowLayout(
            self.sample_of_token.to(device),
            self.position_offset.to(device),
            self.target_ids.to(device),
            (rows.to(device), columns.to(device)),
        )


def build_layout(rows: Sequence[SharedRow]) -> RowLayout:
    """Build the layout of rows that are padded on the right."""
    import torch

    def tensor(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long)

    longest = max(len(row.ids) for row in rows)
    return RowLayout(
        sample_of_token=tensor([[*row.sample_of_token, *[_PADDING] * (longest - len(row.ids))] for row in rows]),
        position_offset=tensor([[*row.position_offset, *[0] * (longest - len(row.ids))] for row in rows]),
        target_ids=tensor(
            [id for row in rows for id, sample in zip(row.ids, row.sample_of_token, strict=True) if sample]
        ),
        predictor_positions=(
            tensor([number for number, row in enumerate(rows) for _ in row.predictor_columns]),
            tensor([column for row in rows for column in row.predictor_columns]),
        ),
    )


def model_inputs(batch: "Batch", layout: RowLayout, model: Any) -> "dict[str, torch.Tensor]":
    """Return the inputs of a batch with positions [3, R, L] and a mask [R, 1, L, L], true where a token sees another.

    `model` is the part of a Qwen-VL-like module that computes positions; its SDPA attention accepts such a mask.
    """
    import torch

    inputs = dict(batch.inputs)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions = model.get_rope_index(**{name: inputs[name] for name in names})[0]
    sample = layout.sample_of_token
    visible = (sample[:, None, :] == 0) | (sample[:, None, :] == sample[:, :, None])
    # Padding comes last, so only padding sees it.
    causal = torch.ones(sample.shape[1], sample.shape[1], dtype=torch.bool, device=sample.device).tril()
    return inputs | {"position_ids": positions - layout.position_offset, "attention_mask": (visible & causal)[:, None]}
