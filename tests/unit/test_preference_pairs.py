"""Preference pairs of offline training: micro-batches within their budget, and crops of images."""

from pathlib import Path

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.vlm_batch import Tokens
from vlgenrm_ray.policy.evaluation import pair_metrics
from vlgenrm_ray.policy.preference_pairs import EncodedPair, labelled_pairs, plan_pairs, random_crop

PROMPT = 5
BUDGET = 192
LENGTHS = st.lists(st.tuples(st.integers(1, 59), st.integers(1, 59)), min_size=1, max_size=12)


def pair(chosen: int, rejected: int, *, other_image: bool) -> EncodedPair:
    one, other = (Tokens(tuple(range(PROMPT + length)), PROMPT) for length in (chosen, rejected))
    crops = (factories.image(sha256="1" * 64),) if other_image else ()
    return EncodedPair(question=factories.question(), chosen=one, rejected=other, other_images=crops)


@given(LENGTHS, st.booleans(), st.sampled_from([None, 4, 4096]), st.integers(1, 3))
def test_every_pair_is_in_one_micro_batch_within_the_budget(
    lengths: list[tuple[int, int]], other_image: bool, width: int | None, workers: int
) -> None:
    pairs = [pair(*both, other_image=other_image) for both in lengths]
    batch = plan_pairs(pairs, shared_width=width, tokens_per_batch=BUDGET, num_workers=workers)
    assert sorted(batch.plan.members()) == list(range(len(pairs)))
    assert not (batch.is_shared and width is None)
    for row in batch.plan.rows:
        assert len(row) == workers
        for micro in row:
            members = [pairs[member] for member in micro.members]
            if batch.is_shared:
                rows = [PROMPT + p.chosen.num_targets + p.rejected.num_targets for p in members]
            else:
                rows = [len(tokens) for p in members for tokens in (p.chosen, p.rejected)]
            rows += [len(p.chosen) for p in members if p.other_images]
            assert len(rows) * max(rows) <= BUDGET


def test_short_responses_to_a_long_prompt_share_it() -> None:
    long_prompt = Tokens(tuple(range(100)), 98)
    pairs = [EncodedPair(question=factories.question(), chosen=long_prompt, rejected=long_prompt)]
    assert plan_pairs(pairs, shared_width=64, tokens_per_batch=1024, num_workers=1).is_shared


def test_only_questions_with_two_different_responses_are_pairs() -> None:
    both = factories.question("both", chosen="Yes.", rejected="No.")
    others = [factories.question("none"), factories.question("equal", chosen="Yes.", rejected="Yes.")]
    assert labelled_pairs([both, *others]) == [both]


def test_a_crop_has_the_size_of_the_image_and_shows_a_part_of_it(tmp_path: Path) -> None:
    gradient = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize((64, 48)) for angle in (0, 90, 0)])
    gradient.save(tmp_path / "image.png")
    ref = images.probe(str(tmp_path / "image.png"), ImageLimits())
    crops = [random_crop(ref, ImageLimits(), seed=str(seed)) for seed in (0, 0, 1)]
    assert crops[0] == crops[1] != crops[2]
    pixels = images.read(crops[0], ImageLimits())
    assert (pixels.size, crops[0].width, crops[0].height) == ((64, 48), 64, 48)
    # At most a fifth of the area: at most sqrt(1/5) of the range of brightness along each side, and no more.
    (low, high), (wide_low, wide_high) = (image.getchannel(0).getextrema() for image in (pixels, gradient))
    assert (high - low) < 0.6 * (wide_high - wide_low)


def test_held_out_pairs_are_the_measure_where_there_is_no_other() -> None:
    preferred = {"a": 1.0, "b": 0.0, "c": 0.5}
    assert pair_metrics(preferred, is_measure=False) == {"pair_accuracy": pytest.approx(0.5), "num_pairs": 3}
    assert pair_metrics(preferred, is_measure=True)["outcomes"] == preferred
    assert pair_metrics({}, is_measure=True)["value"] is None
