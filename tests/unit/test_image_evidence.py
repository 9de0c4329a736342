"""Boxes and windows of image evidence."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.experts.evidence import cut_windows, suppress_overlaps
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
def test_iou_is_symmetric_and_one_for_equal_boxes(a: Box, b: Box) -> None:
    assert 0 <= a.iou(b) <= 1 + 1e-9
    assert a.iou(b) == b.iou(a)
    assert abs(a.iou(a) - 1) < 1e-9
    assert a.intersection(b) <= min(a.area, b.area) + 1e-6


@settings(max_examples=50)
@given(st.lists(boxes, max_size=6))
def test_every_suppressed_box_overlaps_a_better_one(proposals: list[Box]) -> None:
    remaining = suppress_overlaps(proposals, 0.5, 0.8)
    assert list(remaining) == sorted(remaining, key=lambda box: -box.score)
    for i, box in enumerate(remaining):
        for other in remaining[:i]:
            assert box.iou(other) < (0.5 if box.label == other.label else 0.8)
    for box in proposals:
        assert any(box == k or (k.score >= box.score and box.iou(k) >= 0.5) for k in remaining)


def test_windows_tile_the_image() -> None:
    windows = list(cut_windows(90, 60, (1, 3)))
    assert len(windows) == 10
    assert windows[0].area == 90 * 60
    assert abs(sum(box.area for box in windows[1:]) - 90 * 60) < 1e-6
