"""The tiny VLM's first lesson: its vision tower learns to say what lies in each cell, in the language model's words.

A large VLM's tower comes trained from image-text pairs; this one has nothing yet, and would take long to learn to see
from the answers alone. Each merged token is taught to lie near the embeddings of the words for what its cell holds and
of the words for the cell: then one and the same way of reading serves every colour, shape and place.
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.building.vlm_data import Album
from vlgenrm_ray.shapes.scenes import CELLS, COLOURS, SHAPES, Scene

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3VLForConditionalGeneration

NOTHING = "nothing"
_SHARPNESS = 30.0
"""Logits are cosines times the token's length times this: large, so that tokens stay about as long as words."""


def see(model: "Qwen3VLForConditionalGeneration", album: Album, *, steps: int, batch: int, seed: int) -> float:
    """Train the tower in place; return the share of cells whose colour, shape and place it named in the last step."""
    import torch

    tower = model.model.visual
    words = model.model.language_model.embed_tokens.weight.detach()
    kinds = [_directions(album, words, names) for names in ((*COLOURS, NOTHING), (*SHAPES, NOTHING), CELLS)]
    truth = torch.tensor([_cells(scene) for scene in album.scenes])
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, cycle_momentum=False)
    chance = torch.Generator().manual_seed(seed)
    right = torch.zeros(())
    for _ in range(steps):
        drawn = torch.randint(len(album.scenes), (batch,), generator=chance)
        seen = tower(album.patches[drawn].flatten(0, 1).float(), album.grid.expand(batch, -1))
        loss = torch.zeros(())
        right = torch.ones(batch * len(CELLS), dtype=torch.bool)
        for tokens in (seen.pooler_output, *seen.deepstack_features):
            for number, directions in enumerate(kinds):
                logits = tokens @ directions.T * _SHARPNESS
                wanted = truth[drawn, :, number].flatten()
                loss = loss + torch.nn.functional.cross_entropy(logits, wanted)
                right &= logits.argmax(-1) == wanted
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return float(right.float().mean())


def _directions(album: Album, words: "torch.Tensor", names: tuple[str, ...]) -> "torch.Tensor":
    """[names, width]: for each name the direction of the sum of its tokens' embeddings."""
    import torch

    sums = [words[album.processor.tokenizer.encode(f" {name}")].sum(0) for name in names]
    return torch.nn.functional.normalize(torch.stack(sums), dim=1)


def _cells(scene: Scene) -> list[tuple[int, int, int]]:
    """For each cell: which colour, which shape (or neither), which place."""
    held = [scene.at(cell) for cell in range(len(CELLS))]
    return [
        (COLOURS.index(thing.colour), SHAPES.index(thing.shape), cell) if thing else (len(COLOURS), len(SHAPES), cell)
        for cell, thing in enumerate(held)
    ]
