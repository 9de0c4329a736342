"""Parts of the training of the tiny VLM. test_pack.py tests the trained model."""

import pytest

from vlgenrm_ray.shapes.building.basic_curriculum import BasicCurriculum
from vlgenrm_ray.shapes.building.curriculum import VlmCurriculum
from vlgenrm_ray.shapes.building.hard_curriculum import HardCurriculum
from vlgenrm_ray.shapes.building.vlm_dataset import ShapesDataset
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture, build_model, build_processor
from vlgenrm_ray.shapes.building.vlm_training import Muon, pretrain_vision_tower


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_muon_moves_a_matrix_equally_far_in_every_direction(shape: tuple[int, int]) -> None:
    import torch

    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape) * 100
    Muon([matrix], rate=0.5).step(share=0.1)
    moved = torch.linalg.svdvals(matrix.detach()) / (0.05 * max(1.0, shape[0] / shape[1]) ** 0.5)
    assert 0.5 < float(moved.min()) <= float(moved.max()) < 1.3
    assert matrix.grad is None


@pytest.mark.parametrize(
    ("curriculum", "architecture", "steps"),
    [
        (BasicCurriculum(), VlmArchitecture(), 80),
        (HardCurriculum(), VlmArchitecture(vocabulary=576, patch=16, vision_layers=3), 160),
    ],
)
def test_the_vision_tower_learns_to_name_cells(
    curriculum: VlmCurriculum, architecture: VlmArchitecture, steps: int
) -> None:
    processor = build_processor(curriculum, architecture)
    model = build_model(processor.tokenizer, architecture, seed=0)
    dataset = ShapesDataset.draw(processor, curriculum, size=64, seed=0)
    before = model.lm_head.weight.detach().clone()
    assert pretrain_vision_tower(model, dataset, steps=steps, batch=32, seed=0) > 0.8
    assert bool((model.lm_head.weight == before).all())
