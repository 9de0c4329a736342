"""Pre-training of the hard world's vision tower, which takes more steps than the basic world's."""

from vision_towers import assert_vision_tower_learns

from vlgenrm_ray.shapes.building.hard_curriculum import HardCurriculum
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture


def test_the_vision_tower_of_the_hard_world_learns_to_name_cells() -> None:
    architecture = VlmArchitecture(vocabulary=576, patch=16, vision_layers=3)
    assert_vision_tower_learns(HardCurriculum(), architecture, steps=160)
