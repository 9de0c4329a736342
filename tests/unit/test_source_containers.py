"""Containers: files as they are found are recognised by their content, read in pieces, and counted."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_rows import png, png_base64, read_file

from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.sources.container import recognise
from vlgenrm_ray.curation.sources.containers.arrow_files import ArrowFiles
from vlgenrm_ray.curation.sources.containers.delimited_text import DelimitedText
from vlgenrm_ray.curation.sources.containers.json_array import JsonArray, iterate_elements
from vlgenrm_ray.curation.sources.containers.json_lines import JsonLines
from vlgenrm_ray.curation.sources.containers.parquet import Parquet
from vlgenrm_ray.curation.sources.containers.webdataset import WebDataset
from vlgenrm_ray.curation.sources.files import find_files, list_files
from vlgenrm_ray.curation.sources.sample import find_group, find_groups, take_sample
from vlgenrm_ray.data.filesystems import open_filesystem
from vlgenrm_ray.errors import InputError

ROWS = [{"id": f"q{i}", "image": "a.png", "question": f"What {i}?", "chosen": "A", "rejected": "B"} for i in range(7)]


def lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def container_of(path: Path) -> str:
    (file,) = list_files(str(path))
    return recognise(file)[0]


def sample(path: Path | str, **settings: Any) -> tuple[str, str, int, bool]:
    result = take_sample(PoolConfig(source="files", path=str(path), **settings))
    return result.group.container, result.schema, result.num_rows, result.is_exact


# -- recognition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "container"),
    [
        ("a.jsonl", lines(), "jsonl"),
        ("a.json", lines(), "jsonl"),
        ("a.txt", lines(), "jsonl"),
        ("a.json", b"\xef\xbb\xbf" + lines(), "jsonl"),
        ("a.json", json.dumps(ROWS).encode(), "json"),
        ("a.json", json.dumps(ROWS, indent=2).encode(), "json"),
        ("a.jsonl", json.dumps(ROWS, indent=4).encode(), "json"),
        ("a.json", b"\n  [\n" + b",\n".join(lines().splitlines()) + b"\n]\n", "json"),
        ("a.json", json.dumps({"version": 1, "name": "x", "data": ROWS}).encode(), "json"),
        ("a.json", json.dumps({"info": {"year": 2024, "by": 'a "b"'}, "data": ROWS}, indent=2).encode(), "json"),
        ("a.json", json.dumps({"info": {}, "annotations": ROWS}).encode(), "json"),
        ("a.json", json.dumps(ROWS[0]).encode(), "jsonl"),
        ("a.csv", b"image,question\na.png,What?\n", "csv"),
        ("a.tsv", b"image\tquestion\na.png\tWhat?\n", "csv"),
    ],
)
def test_a_text_file_is_recognised_by_its_content(name: str, content: bytes, container: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert container_of(tmp_path / name) == container
    assert sample(tmp_path / name)[0] == container


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x00" * 600])
def test_a_file_of_no_known_format_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"pool\.path: .*(no known format|a zip archive; unpack it|no rows|no column that is a question)",
    ):
        sample(tmp_path / "a.json")


def test_the_wrong_source_reads_the_file_as_what_it_is(tmp_path: Path) -> None:
    """One JSON array under `source: jsonl` would be as many malformed rows as it has lines."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2))
    group = find_group(PoolConfig(source="jsonl", path=str(path)))
    assert group.container == "json"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda d: pa.compress(d, "zstd", asbytes=True)),
    ],
)
def test_compressed_files_are_read(suffix: str, compress: Any, tmp_path: Path) -> None:
    for name, content, container in (
        ("a.jsonl", lines(), JsonLines()),
        ("b.json", json.dumps(ROWS).encode(), JsonArray()),
    ):
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(content))
        assert [row.question_id for row in read_file(container, path)] == [row["id"] for row in ROWS]
        assert sample(path)[1:] == ("pairs", 7, True)
    (tmp_path / f"bad.jsonl{suffix}").write_bytes(b"not compressed")
    with pytest.raises(InputError, match="not a readable"):
        sample(tmp_path / f"bad.jsonl{suffix}")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a", "a.csv"])
def test_a_compressed_file_without_its_suffix_is_read(name: str, tmp_path: Path) -> None:
    content = b"image,question\na.png,What?\n" if name == "a.csv" else lines()
    (tmp_path / name).write_bytes(gzip.compress(content))
    group = find_group(PoolConfig(source="files", path=str(tmp_path / name)))
    assert (group.container, group.files[0].codec) == ("csv" if name == "a.csv" else "jsonl", "gzip")
    assert sample(tmp_path / name)[2:] == (1 if name == "a.csv" else 7, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", "pointer of Git LFS"),
        (lines().decode().encode("utf-16"), "UTF-16; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_what_stands_in_for_the_data_is_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        sample(tmp_path / name)


def test_a_table_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("image,question,answer\na.png,O\u00f9?,l\u00e0\n".encode("latin-1"))
    (row,) = read_file(DelimitedText(), tmp_path / "a.csv", "labelled")
    assert "save the file as UTF-8" in row.problem


def test_a_compressed_file_that_is_cut_off_keeps_its_readable_rows(tmp_path: Path) -> None:
    rows = [{"id": i, "image": "a", "question": f"Q{i}?" * 50} for i in range(5000)]
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode())[:-2000])
    read = read_file(JsonArray(), path)
    assert len(read) > 1
    assert "cannot be read from here on" in read[-1].problem or "ends within" in read[-1].problem
    assert not any(row.problem for row in read[:-1])


# -- JSON arrays ------------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class _Dribble(io.BytesIO):
    """A file that returns a few bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 7, 7) if size and size > 0 else 7)


@settings(deadline=None)
@given(st.lists(_VALUES, max_size=6), st.sampled_from([None, 0, 2]), st.booleans())
def test_the_elements_of_an_array_are_those_that_json_reads(
    values: list[Any], indent: int | None, dribble: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    elements = [e for _, e in iterate_elements((_Dribble if dribble else io.BytesIO)(data))]
    assert [json.loads(e.decode("utf-8", "surrogatepass")) for e in elements if isinstance(e, bytes)] == values


@given(st.binary(max_size=60))
def test_any_bytes_end_the_search_for_elements(data: bytes) -> None:
    for _, element in iterate_elements(io.BytesIO(b"[" + data)):
        assert isinstance(element, bytes | ValueError)


def test_a_malformed_element_costs_only_itself_and_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '[\n  {"id": 1, "image": "a", "question": "Q?"},\n  {"id": 2, "image": oops},\n\n  7,\n'
        '  {"id": 3, "image": "a", "question": "}]{ \\" [ R?"}\n]\n'
    )
    first, bad, number, last = read_file(JsonArray(), path)
    assert (first.question_id, last.question_id, last.text) == ("1", "3", '}]{ " [ R?')
    assert (bad.id, "line 3: not JSON" in bad.problem) == ("a.json:2", True)
    assert (number.id, "object with named columns" in number.problem) == ("a.json:3", True)


def test_what_follows_an_array_is_not_ignored_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('[{"id": 1, "image": "a", "question": "Q?"}]\n[{"id": 2, "image": "a", "question": "Q?"}]\n')
    first, last = read_file(JsonArray(), path)
    assert (first.question_id, "something follows the array" in last.problem) == ("1", True)


def test_an_object_of_rows_is_read_with_its_keys_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"k1": {"image": "a", "question": "Q1?"}, "k2": {"image": "a", "question": "Q2?"}, "k3": {}})
    )
    first, second, bad = read_file(JsonArray(), path)
    assert (first.question_id, second.question_id, second.text) == ("k1", "k2", "Q2?")
    assert "no question" in bad.problem
    assert sample(path)[:2] == ("json", "columns")
    (tmp_path / "b.json").write_text(json.dumps({"demo": {"file_name": "demo.json"}}))
    with pytest.raises(InputError, match=r"describes data sets and holds none; name one of its files: demo\.json"):
        sample(tmp_path / "b.json")


@pytest.mark.parametrize("end", ["", ",", ', {"id": 2', ', {"id": "', ', {"id": 2}'])
def test_an_array_that_is_cut_off_keeps_its_rows(end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": 1, "image": "a", "question": "Q?"}' + end)
    first, *_, last = read_file(JsonArray(), path)
    assert first.question_id == "1"
    assert "ends within the array" in last.problem


def test_an_array_with_long_strings_is_read_in_linear_time() -> None:
    element = json.dumps({"image": "A" * 30_000_000, "question": "\\" * 1000}).encode()
    begin = time.monotonic()
    elements = list(iterate_elements(io.BytesIO(b"[" + element + b"," + element + b"]")))
    assert [len(e) for _, e in elements if isinstance(e, bytes)] == [len(element)] * 2
    assert time.monotonic() - begin < 20


# -- tables -----------------------------------------------------------------------------------------------------------


def test_cells_of_tables_become_values(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", "answer"])
        table.writerow([0, png_base64(), 'What is "it"?\nSay.', "yes"])
        table.writerow([1, '["b.png", "c.png"]', "Where?", ""])
        file.write("only one cell\n")
    one, two, bad = read_file(DelimitedText(), path, "labelled")
    assert (one.text, one.reference, one.images[0].data) == ('What is "it"?\nSay.', "yes", png())
    assert (two.reference, [image.uri for image in two.images]) == (None, [f"{tmp_path}/b.png", f"{tmp_path}/c.png"])
    assert "line 5: 1 cells under a header of 4" in bad.problem


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_the_delimiter_of_a_table_is_found(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(delimiter.join(["id", "image", "question"]) + "\n" + delimiter.join(["1", "a.png", "What?"]) + "\n")
    (row,) = read_file(DelimitedText(), path)
    assert (row.question_id, row.text) == ("1", "What?")


def test_a_folder_of_a_table_and_its_pictures_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    (tmp_path / "rows.csv").write_text("image,question,label\nimages/a.png,Is it?,yes\n")
    assert sample(tmp_path) == ("csv", "labelled", 1, True)


# -- Hugging Face and WebDataset --------------------------------------------------------------------------------------


def saved_rows() -> list[dict[str, Any]]:
    return [
        {
            "images": [{"bytes": png(), "path": None}, {"bytes": None, "path": "b.png"}],
            "question": f"Q{i}?",
            "chosen": "A",
            "rejected": "B",
        }
        for i in range(5)
    ]


def write_saved(folder: Path, rows: list[dict[str, Any]], name: str = "data-00000-of-00001.arrow") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text('{"_data_files": []}')


def test_a_data_set_saved_to_disk_is_read(tmp_path: Path) -> None:
    write_saved(tmp_path / "d", saved_rows())
    assert sample(tmp_path / "d") == ("arrow", "pairs", 5, True)
    rows = read_file(ArrowFiles(), tmp_path / "d" / "data-00000-of-00001.arrow", "pairs")
    assert [(row.text, len(row.images), row.images[0].data) for row in rows][:1] == [("Q0?", 2, png())]
    table = pa.Table.from_pylist(saved_rows())
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert len(read_file(ArrowFiles(), tmp_path / "x.arrow", "pairs")) == 5


def test_datasets_own_folders_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(saved_rows()[:3])
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match=r"holds the splits test, train; set pool\.split"):
        sample(tmp_path / "d")
    assert sample(tmp_path / "d", split="train")[:3] == ("arrow", "pairs", 3)
    assert sample(tmp_path / "d", split="test")[:3] == ("arrow", "pairs", 1)
    assert sample(tmp_path / "d" / "test")[:3] == ("arrow", "pairs", 1)


def test_a_folder_of_the_hub_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "info.json").write_text('{"a": 1}')
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.parquet").write_bytes(b"PAR1")
    for name, rows in (
        ("train-00000-of-00002", ROWS),
        ("train-00001-of-00002", ROWS),
        ("test-00000-of-00001", ROWS[:2]),
    ):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    with pytest.raises(InputError, match="splits test, train"):
        sample(tmp_path)
    assert sample(tmp_path, split="train") == ("parquet", "pairs", 14, True)
    assert sample(tmp_path / "data" / "train-*.parquet") == ("parquet", "pairs", 14, True)
    with pytest.raises(InputError, match="'val' is not in"):
        sample(tmp_path, split="val")


def test_files_of_several_formats_or_schemas_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "b.json").write_text(json.dumps([{"image": "a", "question": "Q?", "label": "yes"}]))
    assert {group.container for group in find_groups(PoolConfig(source="files", path=str(tmp_path)))} == {
        "jsonl",
        "json",
    }
    with pytest.raises(InputError, match="several formats"):
        sample(tmp_path)
    (tmp_path / "b.json").rename(tmp_path / "b.txt")
    (tmp_path / "c.jsonl").write_text(json.dumps({"image": "a", "question": "Q?", "label": "yes"}))
    with pytest.raises(InputError, match=r"several schemas: a\.jsonl \(pairs\), c\.jsonl \(labelled\)"):
        sample(tmp_path)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_files_of_one_name_in_a_tar_make_a_row(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {
            "x/000.jpg": png(),
            "x/000.json": json.dumps({"question": "Q0?", "chosen": "A", "rejected": "B", "image": "old.jpg"}).encode(),
            "x/001.0.png": png(),
            "x/001.1.png": png(20),
            "x/001.json": b'{"question": "Q1?", "chosen": "A", "rejected": "B"}',
            "x/002.png": png(),
            "x/002.json": b"{broken",
            "x/003.png": png(),
            "x/003.txt": b"A caption",
        },
    )
    assert container_of(tmp_path / "a.tar") == "webdataset"
    one, two, bad, caption = read_file(WebDataset(), tmp_path / "a.tar", "pairs")
    assert (one.text, one.question_id, [image.data for image in one.images]) == ("Q0?", "x/000", [png()])
    assert [image.data for image in two.images] == [png(), png(20)]
    assert "x/002.json: not JSON" in bad.problem
    assert caption.text == "A caption"


@pytest.mark.parametrize("num_bytes", [1536 + 100, 1536, 1024 + 100])
def test_an_archive_that_is_cut_off_says_so(num_bytes: int, tmp_path: Path) -> None:
    """Within a header, before one, or within a member; `tarfile` takes the first two for the end."""
    write_tar(tmp_path / "a.tar", {f"{i}.txt": b"Q?" * 100 for i in range(3)})
    whole = (tmp_path / "a.tar").read_bytes()
    assert not any("cut off" in row.problem for row in read_file(WebDataset(), tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole[:num_bytes])
    *_, last = read_file(WebDataset(), tmp_path / "a.tar")
    assert "cut off" in last.problem or "cannot be read from here on" in last.problem


def test_a_compressed_tar_is_read_by_either_suffix(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(), "0.json": b'{"question": "Q?", "answer": "A"}'})
    for name in ("b.tgz", "b.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
        assert sample(tmp_path / name)[:2] == ("webdataset", "labelled")


def test_a_list_of_data_sets_beside_them_is_not_read(tmp_path: Path) -> None:
    """MMPR: `meta.json` names the annotations and the folders of their images."""
    listed = {"set_a": {"root": "MMPR/images/a", "annotation": "MMPR/annotations/a.jsonl", "length": 7}}
    (tmp_path / "meta.json").write_text(json.dumps(listed))
    with pytest.raises(
        InputError, match=r"name one of its files: MMPR/annotations/a\.jsonl \(image_folder: MMPR/images/a\)"
    ):
        sample(tmp_path / "meta.json")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.jsonl").write_bytes(lines())
    assert sample(tmp_path) == ("jsonl", "pairs", 7, True)


# -- addresses --------------------------------------------------------------------------------------------------------


def test_rows_and_images_of_an_object_store_are_read() -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/bucket/d/rows.jsonl", lines(ROWS[:2]))
    store.pipe("/bucket/d/more.jsonl.gz", gzip.compress(lines(ROWS[2:])))
    store.pipe("/bucket/d/a.png", png())
    try:
        files = find_files("memory://bucket/d", (".jsonl",))
        assert [(file.uri, file.name) for file in files] == [
            ("memory://bucket/d/more.jsonl.gz", "more.jsonl.gz"),
            ("memory://bucket/d/rows.jsonl", "rows.jsonl"),
        ]
        assert sample("memory://bucket/d/*.jsonl*")[:3] == ("jsonl", "pairs", 7)
        assert sample("memory://bucket/d/rows.jsonl") == ("jsonl", "pairs", 2, True)
        from vlgenrm_ray.data import images
        from vlgenrm_ray.data.images import ImageLimits

        assert images.fetch("memory://bucket/d/a.png", ImageLimits()) == png()
    finally:
        store.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "uri", ["http://x/a", "https://x/a", "ftp://x/a", "ssh://x/a", "github://o:r@/a", "memory://a::http://x/b"]
)
def test_network_addresses_are_never_opened(uri: str) -> None:
    with pytest.raises((ValueError, OSError)):
        open_filesystem(uri)


# -- size -------------------------------------------------------------------------------------------------------------


def test_a_large_file_is_sampled_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    block = lines([{"id": i, "image": "a.png", "question": "What is it?" * 3, "label": "yes"} for i in range(1000)])
    with path.open("wb") as file:
        for _ in range(200):
            file.write(block)
    begin = time.monotonic()
    assert sample(path) == ("jsonl", "labelled", 200_000, True)
    assert time.monotonic() - begin < 10
    with (tmp_path / "big.json").open("wb") as file:
        file.write(b"[" + b",".join([block.strip().replace(b"\n", b",")] * 200) + b"]")
    _, _, num_rows, _ = sample(tmp_path / "big.json")
    assert 150_000 < num_rows < 250_000


def test_parquet_is_counted_by_its_footers(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=3)
    assert sample(tmp_path / "a.parquet") == ("parquet", "pairs", 7, True)
    assert len(read_file(Parquet(), tmp_path / "a.parquet")) == 7
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match="no readable Parquet file"):
        sample(tmp_path / "bad.parquet")
