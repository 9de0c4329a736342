"""No row ends the pool stage: each becomes a question or a drop with its reason, in whatever way it is wrong."""

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_rows import ADDRESSES, TEXTS, nested, special_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_corpus import corpus_images
from source_rows import parse_row, read_file

from vlgenrm_ray.curation.pool import PoolConfig, is_within, resolve_row
from vlgenrm_ray.curation.sources.containers.json_lines import JsonLines
from vlgenrm_ray.curation.sources.containers.parquet import Parquet
from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data.arrow import from_table, to_table
from vlgenrm_ray.data.store import Unit, units_table
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Question

PNG = next(example.data for example in corpus_images() if example.name == "png")
ROW = {"id": "q1", "image": PNG, "question": "What is it?"}
REASONS = {reason.value for reason in DropReason}


def resolve(row: SourceRow, folder: Path, config: PoolConfig | None = None) -> Unit[Question]:
    """Take a row through the steps of the stage, conversions to Arrow included. Checks that nothing is lost."""
    (arrived,) = from_table(SourceRow, to_table(SourceRow, [row]))
    unit = resolve_row(arrived, config or PoolConfig(), folder)
    assert units_table(Question, [unit]).num_rows == 1
    assert len(unit.records) + len(unit.dropped) == 1
    for dropped in unit.dropped:
        assert dropped.reason in REASONS
        assert dropped.detail
        assert "object at 0x" not in dropped.detail
        assert len(dropped.detail) < 2000
    return unit


def reason(row: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Reason and detail with which a row of a data set is dropped."""
    unit = resolve(parse_row(row, id="d.jsonl:1", folder=str(folder)), folder)
    assert not unit.records
    return unit.dropped[0].reason, unit.dropped[0].detail


_NOT_OPENED = ("image_missing", "image_unreachable", "image_unreadable", "malformed_row")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_cannot_be_opened_drops_its_row(address: str, tmp_path: Path) -> None:
    assert reason(ROW | {"image": address}, tmp_path)[0] in _NOT_OPENED
    config = PoolConfig(image_root=str(tmp_path))
    row = parse_row(ROW | {"image": address}, id="d:1", folder=str(tmp_path))
    assert resolve(row, tmp_path, config).dropped
    assert isinstance(is_within(address, "s3://bucket/a"), bool)


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    for path in special_files(tmp_path):
        for address in (path, f"file://{path}"):
            assert reason(ROW | {"image": address}, tmp_path)[0] == "image_missing", address
    assert "not a regular file" in reason(ROW | {"image": f"{tmp_path}/pipe.png"}, tmp_path)[1]
    assert "not a regular file" in reason(ROW | {"image": "/dev/zero"}, tmp_path)[1]


@pytest.mark.parametrize("name", ["frame-12:30.png", "C:a.png", "a b.png", "50%.png", "#1.png", "é.png", "a?b.png"])
def test_a_file_of_any_name_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(PNG)
    for address in (name, f"{tmp_path}/{name}", (tmp_path / name).as_uri()):
        row = parse_row(ROW | {"image": address}, id="d:1", folder=str(tmp_path))
        assert resolve(row, tmp_path, PoolConfig(image_root=str(tmp_path))).records, address


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("column", ["id", "question", "reference", "kind", "image"])
def test_a_text_is_kept_as_it_is_or_its_row_is_dropped(column: str, text: str, tmp_path: Path) -> None:
    row = parse_row(ROW | {column: text}, id="d.jsonl:1", folder=str(tmp_path))
    unit = resolve(row, tmp_path)
    try:
        text.encode()
    except UnicodeEncodeError:
        assert unit.dropped[0].reason == "malformed_row"
        assert f"{column} is not valid Unicode" in unit.dropped[0].detail
    else:
        assert unit.records or column == "image" or not text.strip()


def test_values_nested_too_deep_are_malformed(tmp_path: Path) -> None:
    for column in ("question", "image", "id", "chosen"):
        for value in (nested(100_000), nested(100_000, "bytes"), [[[]]] * 3):
            row = parse_row(ROW | {column: value}, id="d:1", folder=str(tmp_path))
            unit = resolve(row, tmp_path)
            # A mapping without a text is no response at all.
            assert unit.dropped or column == "chosen"
            assert all(dropped.reason == "malformed_row" for dropped in unit.dropped)


def test_a_full_image_store_stops_the_stage(tmp_path: Path) -> None:
    """A fault of the machine is not one of the row, and would drop all of them."""
    (tmp_path / "store").write_text("a file in the place of the folder")
    row = parse_row(ROW, id="d:1", folder=str(tmp_path))
    with pytest.raises(OSError, match="store"):
        resolve_row(row, PoolConfig(), tmp_path / "store")


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=40)
_TEXTS = (
    st.text(st.characters(codec=None, categories=None), max_size=20)
    | st.sampled_from([*ADDRESSES, *TEXTS])
    | st.builds("{}{}".format, st.sampled_from(["file://", "mock://", "data:;base64,", "/"]), st.text(max_size=9))
)


def _damage(index: int, place: int, byte: int) -> bytes:
    data = corpus_images()[index].data
    return data[:place] + bytes([byte]) + data[place + 1 :]


_DAMAGED = st.builds(_damage, st.integers(0, len(corpus_images()) - 1), st.integers(0, 300), st.integers(0, 255))
_VALUES = st.recursive(
    _SCALARS | _TEXTS | _DAMAGED,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["bytes", "path", "role", "from", "value", "content", "type", "text"]), inner)
    ),
    max_leaves=6,
)


_COLUMNS = st.sampled_from(["id", "image", "question", "chosen", "rejected", "reference", "kind"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_COLUMNS, _VALUES))
def test_any_row_becomes_a_question_or_a_drop(row: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        parsed = parse_row({"question": "What is it?"} | row, id="d:1", folder=folder)
        resolve(parsed, Path(folder), PoolConfig(image_root=folder))


@settings(max_examples=200, deadline=None)
@given(_DAMAGED)
def test_a_damaged_image_is_decoded_or_dropped(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        row = SourceRow(id="d:1", question_id="q", text="What is it?", images=(SourceImage(data=data),))
        for dropped in resolve(row, Path(folder)).dropped:
            assert dropped.reason in ("image_unreadable", "image_too_large")


# -- files -----------------------------------------------------------------------------------------------------------

LINES = (
    b'{"id": "good", "image": "a.png", "question": "What is it?"}',
    b'{"id": "\\ud83d", "image": "a.png", "question": "half in an id"}',
    b'{"id": "q1", "image": "a.png", "question": "\\ud83d"}',
    b'{"id": "q2", "image": "a\\u0000.png", "question": "NUL"}',
    b'{"id": "q3", "image": "http://[::1", "question": "half an address"}',
    b'{"id": "q4", "question": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b"[" * 200_000,
    b'{"id": ' + b"9" * 5000 + b"}",
    b'{"id": NaN, "image": Infinity, "question": -Infinity}',
    b"\xff\xfe\x00",
    b'"just a text"',
    b"null",
    b'{"id": "q5", "image": "frame-12:30.png", "question": "a colon"}',
)


def test_no_line_ends_the_reading_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "d.jsonl").write_bytes(b"\n".join(LINES))
    rows = read_file(JsonLines(), tmp_path / "d.jsonl")
    assert [row.id for row in rows] == [f"d.jsonl:{number}" for number in range(1, len(LINES) + 1)]
    units = [resolve(row, tmp_path) for row in rows]
    assert [bool(unit.records) for unit in units] == [True] + [False] * (len(LINES) - 1)
    assert "nested too deep" in units[6].dropped[0].detail


def test_a_value_of_parquet_that_python_cannot_represent_drops_its_row(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(struct.pack("<4i", 0, 2, 4, 6)), pa.py_buffer(b"Q1\xff\xfeQ3"))
    images = pa.array([PNG] * 3, pa.binary())
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"image": images, "question": texts}), path)
    units = [resolve(row, tmp_path) for row in read_file(Parquet(), path)]
    assert [len(unit.records) for unit in units] == [1, 0, 1]
    assert "UnicodeDecodeError" in units[1].dropped[0].detail
    pq.write_table(pa.table({"id": texts, "image": images, "question": ["Q?"] * 3}), path)
    units = [resolve(row, tmp_path) for row in read_file(Parquet(), path)]
    assert [len(unit.records) for unit in units] == [1, 0, 1]


def test_lines_of_json_made_of_anything_are_read(tmp_path: Path) -> None:
    for number, text in enumerate((*ADDRESSES, *TEXTS)):
        row = {"id": number, "image": text, "question": text}
        (tmp_path / "d.jsonl").write_text(json.dumps(row))
        (parsed,) = read_file(JsonLines(), tmp_path / "d.jsonl")
        assert resolve(parsed, tmp_path).dropped
