"""Pre-training of a tiny VLM's vision tower, for tests of the curricula."""

from vlgenrm_ray.shapes.building.curriculum import VlmCurriculum
from vlgenrm_ray.shapes.building.vlm_dataset import ShapesDataset
from vlgenrm_ray.shapes.building.vlm_model import VlmArchitecture, build_model, build_processor
from vlgenrm_ray.shapes.building.vlm_training import pretrain_vision_tower


def assert_vision_tower_learns(curriculum: VlmCurriculum, architecture: VlmArchitecture, *, steps: int) -> None:
    """Assert that a vision tower learns to name the cells of scenes, and that the language head stays as it is."""
    processor = build_processor(curriculum, architecture)
    model = build_model(processor.tokenizer, architecture, seed=0)
    dataset = ShapesDataset.draw(processor, curriculum, size=64, seed=0)
    before = model.lm_head.weight.detach().clone()
    assert pretrain_vision_tower(model, dataset, steps=steps, batch=32, seed=0) > 0.8
    assert bool((model.lm_head.weight == before).all())
