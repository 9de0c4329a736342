"""Grouping of responses by image."""

import factories
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from vlgenrm_ray.curation.by_image import group_rows
from vlgenrm_ray.data.arrow import arrow_schema, to_row
from vlgenrm_ray.records import Response


def rows(images: list[str]) -> pa.Table:
    """One response per entry, to a question about that image."""
    questions = [factories.question(f"q{i}", image=factories.image(sha256=sha256)) for i, sha256 in enumerate(images)]
    responses = [to_row(factories.response(f"{question.id}/r0", question=question)) for question in questions]
    kind = pa.struct(list(arrow_schema(Response)))
    return pa.table({"id": pa.array(images, pa.string()), "response": pa.array(responses, kind)})


@settings(max_examples=30)
@given(st.lists(st.integers(0, 200).map("{:064x}".format), max_size=150))
def test_every_response_comes_under_its_own_image_once(images: list[str]) -> None:
    grouped = group_rows(rows(images)).to_pylist()
    assert sorted(row["id"] for row in grouped) == sorted(set(images))
    for row in grouped:
        assert {r["question"]["image"]["sha256"] for r in row["responses"]} == {row["id"]}
    response_ids = sorted(response["id"] for row in grouped for response in row["responses"])
    assert response_ids == sorted(f"q{i}/r0" for i in range(len(images)))
