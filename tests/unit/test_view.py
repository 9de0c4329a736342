"""Boxes: overlap, and which of several stand for one thing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.view import area, distinct, overlap, shared_area, windows
from vlgenrm_ray.records import Box

sides = st.floats(1, 50)
boxes = st.builds(
    lambda label, score, x, y, w, h: Box(label=label, score=score, x0=x, y0=y, x1=x + w, y1=y + h),
    st.sampled_from("ab"),
    st.floats(0, 1),
    st.floats(0, 100),
    st.floats(0, 100),
    sides,
    sides,
)


@given(boxes, boxes)
def test_overlap_is_symmetric_and_one_only_for_equals(a: Box, b: Box) -> None:
    assert 0 <= overlap(a, b) <= 1 + 1e-9
    assert overlap(a, b) == overlap(b, a)
    assert abs(overlap(a, a) - 1) < 1e-9
    assert shared_area(a, b) <= min(area(a), area(b)) + 1e-6


@settings(max_examples=50)
@given(st.lists(boxes, max_size=6))
def test_distinct_boxes_keep_the_best_and_each_dropped_one_has_a_better_neighbour(found: list[Box]) -> None:
    kept = distinct(found, 0.5, 0.8)
    assert list(kept) == sorted(kept, key=lambda box: -box.score)
    for i, box in enumerate(kept):
        for other in kept[:i]:
            assert overlap(box, other) < (0.5 if box.label == other.label else 0.8)
    for box in found:
        assert any(box == k or (k.score >= box.score and overlap(box, k) >= 0.5) for k in kept)


def test_windows_tile_the_image() -> None:
    cut = list(windows(90, 60, (1, 3)))
    assert len(cut) == 10
    assert area(cut[0]) == 90 * 60
    assert abs(sum(map(area, cut[1:])) - 90 * 60) < 1e-6
