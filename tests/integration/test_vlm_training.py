"""Parts of the training of the tiny VLM. test_pack.py tests the trained model, tests/whole trains the hard world's."""

import pytest
from vision_towers import assert_vision_tower_learns

from vlgenrm_ray.shapes.building.basic_curriculum import BasicCurriculum
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture
from vlgenrm_ray.shapes.building.vlm_training import Muon


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


def test_the_vision_tower_learns_to_name_cells() -> None:
    assert_vision_tower_learns(BasicCurriculum(), VlmArchitecture(), steps=80)
