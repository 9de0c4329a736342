import dataclasses

import factories
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray import records
from vlgenrm_ray.data import arrow
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import CheckedResponse, Critique, Finding, Preference, Question, Response, Truth


def checked() -> CheckedResponse:
    finding = Finding(
        claim=factories.claim(), truth=Truth.SUPPORTED, expert="detector", score=0.5, boxes=(factories.box(),)
    )
    return CheckedResponse(
        id="q0/r0", response=factories.response(), findings=(finding,), detections=(factories.detection(),)
    )


@pytest.mark.parametrize(
    "record",
    [
        factories.question(),
        factories.response(),
        checked(),
        factories.preference(),
        factories.critique(),
        factories.rollout(),
    ],
    ids=lambda r: type(r).__name__,
)
def test_a_record_survives_arrow(record: object) -> None:
    table = arrow.to_table(type(record), [record])
    assert arrow.from_table(type(record), table) == [record]


def test_an_empty_table_keeps_its_schema() -> None:
    assert arrow.to_table(CheckedResponse, []).schema == arrow.to_table(CheckedResponse, [checked()]).schema


@given(text=st.text(), seed=st.none() | st.integers(-(2**63), 2**63 - 1))
def test_any_text_and_seed_are_stored_unchanged(text: str, seed: int | None) -> None:
    text = text.encode("utf-8", "ignore").decode()
    response = factories.response(text=text, seed=seed)
    assert arrow.from_table(Response, arrow.to_table(Response, [response])) == [response]


def test_an_abstaining_critique_is_stored_unchanged() -> None:
    silent = factories.critique(verdict=None, p_yes=None, verdict_mass=0.0)
    assert arrow.from_table(Critique, arrow.to_table(Critique, [silent])) == [silent]


def test_a_missing_field_is_an_error_not_a_default() -> None:
    row = arrow.to_row(factories.preference())
    del row["chosen"]
    with pytest.raises(InputError, match="lacks chosen"):
        arrow.from_row(Preference, row)


def test_every_record_has_an_arrow_schema() -> None:
    record_types = [c for c in vars(records).values() if isinstance(c, type) and dataclasses.is_dataclass(c)]
    assert {Response, CheckedResponse, Preference, Critique} <= set(record_types)
    for cls in record_types:
        assert isinstance(arrow.arrow_schema(cls), pa.Schema)


def test_a_row_of_an_earlier_version_has_the_defaults_of_newer_fields() -> None:
    row = arrow.to_row(factories.question())
    del row["kind"], row["reference"]
    assert arrow.from_row(Question, row) == factories.question(kind="", reference=None)


def test_a_row_that_lacks_a_required_field_is_refused_with_the_remedy() -> None:
    row = arrow.to_row(factories.question())
    del row["text"]
    with pytest.raises(InputError, match=r"a row of Question lacks text: another version .* make it again"):
        arrow.from_row(Question, row)


def test_addresses_are_converted_also_inside_lists() -> None:
    questions = [
        factories.question("a", more_images=(factories.image(uri="/b.png"), factories.image(uri="/c.png"))),
        factories.question("b", image=factories.image(uri="/d.png")),
    ]
    table = arrow.map_uris(arrow.to_table(Question, questions), lambda uris: pc.binary_join_element_wise("x", uris, ""))
    for part in (table, table.slice(1)):
        converted = arrow.from_table(Question, part)
        assert converted[-1].image.uri == "x/d.png"
        assert converted[-1].more_images == ()
    first = arrow.from_table(Question, table)[0]
    assert [image.uri for image in first.images] == ["x/nowhere.png", "x/b.png", "x/c.png"]
    again = arrow.map_uris(table.slice(0, 1), lambda uris: pc.utf8_slice_codeunits(uris, start=1))
    assert arrow.from_table(Question, again)[0].more_images == questions[0].more_images
