"""Samples of one prompt as one row of a model: the prompt runs once, and the samples after it do not see each other.

    token      prompt         first sample   second sample
    of         0 0 0 0        1 1 1          2 2
    position   0 1 2 3        4 5 6          4 5

What the model says of a sample is what it says of it alone, and so is the gradient, but for rounding. A group's prompt,
and with it the image's tokens, which are most of it, is computed once and not once for each sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.vlm_batch import Batch, Tokens

_PADDING = -1


def runs(
    num_prompt: int, completions: Sequence[int], *, width: int, tokens_per_row: int, samples_per_row: int
) -> list[range]:
    """How samples of one prompt are best divided into rows: places in `completions`, their lengths in tokens.

    The cheapest of all even divisions for a decoder of hidden size `width`. One row of many long samples would cost
    more than it saves: attention is computed between all of its tokens. A row of several keeps both limits.
    """
    number = len(completions)
    best = [range(i, i + 1) for i in range(number)]
    least = sum(cost(num_prompt + length, shared=False, width=width) for length in completions)
    for rows in range(-(-number // samples_per_row), number):
        found = [range(begin, end) for begin, end in pairwise(number * i // rows for i in range(rows + 1))]
        lengths = [num_prompt + sum(completions[run.start : run.stop]) for run in found]
        if max(lengths) > tokens_per_row:
            continue
        if (found_cost := sum(cost(length, shared=True, width=width) for length in lengths)) < least:
            best, least = found, found_cost
    return best


def cost(num_tokens: int, *, shared: bool, width: int) -> int:
    """Of a row, in units of 2 x width multiplications and additions a layer.

    A layer has about 12 width^2 weights, and a pair of tokens that is attended to takes 4 x width more; the causal mask
    of a lone sample spares half of the pairs, that of several is a tensor and spares none.
    """
    return num_tokens * (12 * width + (2 if shared else 1) * num_tokens)


def num_tokens(samples: "Sequence[Tokens]") -> int:
    """Of a row of such samples."""
    return samples[0].num_prompt + sum(tokens.num_targets for tokens in samples)


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one prompt, the prompt once."""

    ids: tuple[int, ...]
    of: tuple[int, ...]
    """Of each token: 0 for the prompt's, i for the i-th sample's."""
    back: tuple[int, ...]
    """How much less a token's position in its own sample is than its place in the row."""
    before: tuple[int, ...]
    """Of each sampled token, the place in the row of the token before it in its own sample."""


def row(samples: "Sequence[Tokens]") -> Row:
    """One row of samples that begin with the same prompt. Raises ValueError where they do not."""
    num_prompt = samples[0].num_prompt
    prompt = samples[0].prompt
    ids, of, back, before = list(prompt), [0] * num_prompt, [0] * num_prompt, list[int]()
    for number, tokens in enumerate(samples, start=1):
        if tokens.prompt != prompt:
            raise ValueError("samples of one row have one prompt")
        begin = len(ids)
        ids += tokens.ids[num_prompt:]
        of += [number] * tokens.num_targets
        back += [begin - num_prompt] * tokens.num_targets
        before += [num_prompt - 1, *range(begin, len(ids) - 1)] if tokens.num_targets else []
    return Row(tuple(ids), tuple(of), tuple(back), tuple(before))


@dataclass(frozen=True, slots=True)
class Sharing:
    """What a batch of R rows of L tokens, N of them sampled, must know beside its inputs; samples as in `Row`."""

    of: "torch.Tensor"
    """[R, L]; negative for padding."""
    back: "torch.Tensor"
    """[R, L]."""
    words: "torch.Tensor"
    """[N]: the sampled tokens, sample by sample."""
    before: "tuple[torch.Tensor, torch.Tensor]"
    """[N] each: row and column of what stands before them."""

    def to(self, device: "torch.device") -> "Sharing":
        """The same on a device."""
        rows, columns = self.before
        return Sharing(
            self.of.to(device), self.back.to(device), self.words.to(device), (rows.to(device), columns.to(device))
        )


def sharing(rows: Sequence[Row]) -> Sharing:
    """Of rows padded on the right."""
    import torch

    def tensor(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long)

    longest = max(len(one.ids) for one in rows)
    return Sharing(
        of=tensor([[*one.of, *[_PADDING] * (longest - len(one.of))] for one in rows]),
        back=tensor([[*one.back, *[0] * (longest - len(one.back))] for one in rows]),
        words=tensor([word for one in rows for word, of in zip(one.ids, one.of, strict=True) if of]),
        before=(
            tensor([place for place, one in enumerate(rows) for _ in one.before]),
            tensor([column for one in rows for column in one.before]),
        ),
    )


def model_inputs(batch: "Batch", shared: Sharing, model: Any) -> "dict[str, torch.Tensor]":
    """A batch's inputs, with positions [3, R, L] and a mask [R, 1, L, L], true where a token (row) sees one (column).

    `model`: the part of a Qwen-VL-like module that tells positions; its attention is SDPA, which takes such a mask.
    """
    import torch

    inputs = dict(batch.inputs)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions = model.get_rope_index(**{name: inputs[name] for name in names})[0]
    of = shared.of
    seen = (of[:, None, :] == 0) | (of[:, None, :] == of[:, :, None])
    # Padding comes last: nothing but padding sees it.
    earlier = torch.ones(of.shape[1], of.shape[1], dtype=torch.bool, device=of.device).tril()
    return inputs | {"position_ids": positions - shared.back, "attention_mask": (seen & earlier)[:, None]}
