"""Inspection of data sets: what a person or a run is told before an engine starts."""

import io
import json
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hostile_rows import ADDRESSES, TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from source_rows import png
from typer.testing import CliRunner

from vlgenrm_ray import cli, entrypoints
from vlgenrm_ray.cluster import connection
from vlgenrm_ray.curation.inspection import SourceReport, check_inputs, inspect
from vlgenrm_ray.curation.inspection_view import inputs_table, print_reports, reports_json, set_arguments
from vlgenrm_ray.curation.pool import HeldoutConfig, PoolConfig
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError


def write(folder: Path, rows: list[Any], name: str = "d.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def write_image(path: Path, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(side))


def pair(id: int | str, image: str = "a.png", **columns: Any) -> dict[str, Any]:
    return {"id": id, "image": image, "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."} | columns


def report_of(path: Path | str, **settings: Any) -> SourceReport:
    (report,) = inspect(PoolConfig(source="files", path=str(path), **settings))
    return report


def printed(report: SourceReport) -> str:
    console = Console(width=80, file=io.StringIO(), highlight=False)
    print_reports(console, [report])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= 80 or "--set" in line for line in text.split("\n"))
    return str(text)


def test_a_report_says_what_becomes_of_the_rows(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 20)
    rows = [pair(1, weight=3), pair(1), pair(2, image="lost.png"), "{broken", pair(3, image=None, video="a.mp4")]
    report = report_of(write(tmp_path, rows))
    assert (report.format, report.schema, report.num_rows, report.is_exact) == ("JSON Lines", "pairs", 5, True)
    assert (report.num_questions, report.num_usable, report.num_pairs, report.repeated_ids) == (5, 2, 2, 1)
    assert report.dropped == {"image_missing": 1, "malformed_row": 1, "video": 1}
    assert {(problem.row, problem.reason) for problem in report.problems} == {
        ("d.jsonl:3", "image_missing"),
        ("d.jsonl:4", "malformed_row"),
        ("d.jsonl:5", "video"),
    }
    assert report.unused_columns == ("weight",)
    assert report.roles["question"] == ("question",)
    assert report.roles["group"] == ("id",)
    example = report.examples[0]
    assert (example.text, example.chosen, example.images[0].width) == ("What is it?", "A cat.", 20)
    text = printed(report)
    for words in ("not used", "weight", "20x20", "d.jsonl:4: not JSON", "end in #2", "--set pool.source=files"):
        assert words in text, words


def test_a_label_that_is_not_used_is_pointed_out(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    report = report_of(write(tmp_path, [pair(1, human_ranking=1, task_gt=[0, 1])]))
    assert set(report.unused_columns) == {"human_ranking", "task_gt"}
    assert sum("is not used" in note for note in report.notes) == 2


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("images/x/a.png", "data/images"),
        ("data/train2017/x/a.png", "data/train2017"),
        ("x/a.png", "."),
        ("data/x/a.png", None),
    ],
)
def test_the_folder_of_the_images_is_found_nearby(
    place: str, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = place if place.startswith("data/") or folder == "." else f"data/{place}"
    write_image(tmp_path / place)
    write(tmp_path / "data", [pair(1, image="./x/a.png")])
    report = report_of("data/d.jsonl")
    assert report.settings.get("image_folder") == folder
    assert (report.num_usable, report.dropped) == (1, {})
    arguments = set_arguments("pool", report.settings)
    assert arguments[1] == "--set pool.path=data/d.jsonl"


def test_the_folder_of_the_images_is_found_beside_that_of_the_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "annotations", [pair(1)])
    for folder, advice in (("images/train", "images/train"), ("images/val", None)):
        write_image(tmp_path / folder / "a.png")
        report = report_of("annotations/d.jsonl")
        assert report.settings.get("image_folder") == advice, "two folders have the image: it may be of either"
        assert report.num_usable == (advice is not None)


def test_images_of_network_addresses_are_looked_up_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "b.png")
    path = write(tmp_path, [pair(1, image="https://example.org/a/b.png?size=2")])
    assert report_of(path).dropped == {"image_missing": 1}
    assert report_of(path, image_folder=str(tmp_path / "images")).num_usable == 1


def test_a_million_rows_are_inspected_in_seconds(tmp_path: Path) -> None:
    block = "".join(json.dumps(pair(i)) + "\n" for i in range(1000))
    with (tmp_path / "d.jsonl").open("w") as file:
        for _ in range(1000):
            file.write(block)
    write_image(tmp_path / "a.png")
    begin = time.monotonic()
    report = report_of(tmp_path / "d.jsonl")
    assert time.monotonic() - begin < 20
    assert (report.num_rows, report.num_usable == report.num_questions) == (1_000_000, True)
    assert report.num_checked >= 200
    with (tmp_path / "d.jsonl").open("r+b") as file:
        # One row is broken far behind the beginning of the file.
        file.seek(8 * 1024 * 1024 * 5)
        file.readline()
        number = (tmp_path / "d.jsonl").read_bytes()[: file.tell()].count(b"\n") + 1
        file.write(b"*")
    broken = report_of(tmp_path / "d.jsonl")
    assert [(p.row, p.detail[:8]) for p in broken.problems] == [(f"d.jsonl:{number}", "not JSON")]


def test_formats_of_a_folder_have_a_report_each(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write(tmp_path, [pair(1)])
    (tmp_path / "b.json").write_text(json.dumps([pair(2)]))
    reports = inspect(PoolConfig(source="files", path=str(tmp_path)))
    assert {(r.format, r.settings["path"]) for r in reports} == {
        ("JSON Lines", f"{tmp_path}/d.jsonl"),
        ("JSON array", f"{tmp_path}/b.json"),
    }


def test_a_split_is_chosen_and_said(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write(tmp_path, [pair(1), pair(2)], "test.jsonl")
    write(tmp_path, [pair(3)], "train.jsonl")
    report = report_of(tmp_path)
    assert (report.num_rows, report.settings["split"]) == (1, "train")
    assert report.notes[0] == "the data set has the splits test, train; this is train"
    assert report_of(tmp_path, split="test").num_rows == 2


# -- the command ------------------------------------------------------------------------------------------------------


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_a_report_or_json(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = str(write(tmp_path, [{"pic": "a.png", "ask": "What?"}]))
    output = run_command(path, "--set", "columns.image=pic", "--set", "columns.question=ask", "--json")
    report = json.loads(output)
    assert (report["schema"], report["num_usable"]) == ("columns", 1)
    assert "--set pool.columns.question=ask" in report["set"]
    assert "example 1" in run_command(path, "--set", "columns.image=pic", "--set", "columns.question=ask")


def test_the_command_names_a_missing_file_and_unknown_columns(tmp_path: Path) -> None:
    runner = CliRunner()
    missing = runner.invoke(cli.app, ["inspect", str(tmp_path / "no.json")])
    assert isinstance(missing.exception, InputError)
    assert "names no file" in str(missing.exception)
    path = write(tmp_path, [{"pic": "a.png", "ask": "What?"}])
    unknown = runner.invoke(cli.app, ["inspect", str(path)])
    assert "its columns are ask, pic" in str(unknown.exception)


# -- before a run -----------------------------------------------------------------------------------------------------


def check(**inputs: PoolConfig) -> dict[str, SourceReport]:
    return check_inputs(inputs)


def test_inputs_of_a_run_are_checked_and_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = str(write(tmp_path, [pair(1), pair(2)]))
    reports = check(
        pool=PoolConfig(source="files", path=path),
        heldout=HeldoutConfig(source="jsonl", path=path),
        shapes=PoolConfig(source="shapes"),
    )
    assert {section: report.num_pairs for section, report in reports.items()} == {"pool": 2, "heldout": 2}
    console = Console(width=80, file=io.StringIO())
    console.print(inputs_table(reports))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "heldout.path: .* has no rows"),
        (["{broken"], r"heldout.path: no row of .* can be read; d\.jsonl:1: not JSON"),
        (
            [pair(1, image="lost.png")],
            r"heldout.path: .* none of the first 1 rows .*image_missing 1.* d\.jsonl:1: .*lost\.png",
        ),
        ([{"image": "a.png", "question": "Q?"}], "heldout.path: .* no row of 1 has a chosen and a rejected response"),
        ([{"picture": "a.png", "ask": "Q?"}], "its columns are ask, picture.*heldout.columns"),
        ([pair(1, image="images/b.png")], r"not in the folder of the file but in .*x; set heldout\.image_folder="),
    ],
)
def test_a_bad_input_is_named_with_its_remedy(rows: list[Any], says: str, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "x" / "images" / "b.png")
    path = str(write(tmp_path, rows))
    with pytest.raises(InputError, match=says):
        check(heldout=HeldoutConfig(source="files", path=path))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_with_a_bad_input_ends_before_ray_starts(
    dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*arguments: object, **settings: object) -> None:
        pytest.fail("the inputs must be checked first")

    monkeypatch.setattr(connection, "connect", connect)
    write_image(tmp_path / "a.png")
    good = str(write(tmp_path, [pair(1)], "good.jsonl"))
    bad = str(write(tmp_path, [pair(1), {"image": "a.png", "question": "Q?", "chosen": "A"}], "bad.jsonl"))
    empty = str(write(tmp_path, [{"image": "a.png", "question": "Q?"}], "empty.jsonl"))
    overrides = (f"pool={{source: files, path: {good}}}", f"heldout={{source: files, path: {empty}}}")
    with pytest.raises(InputError, match=r"heldout\.path: .*empty\.jsonl"):
        entrypoints.train_reward(
            entrypoints.shipped_recipe("shapes"), overrides=overrides, run=tmp_path / "run", dry_run=dry_run
        )
    report = check(heldout=HeldoutConfig(source="files", path=bad))["heldout"]
    assert [(p.row, p.detail) for p in report.problems] == [("bad.jsonl:2", "has chosen alone; give both or neither")]


def test_a_benchmark_that_cannot_be_read_ends_the_run_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "connect", lambda *_, **__: pytest.fail("the inputs must be checked first"))
    overrides = ("benchmarks=[{name: pope, data: /nowhere.json}]",)
    with pytest.raises(InputError, match=r"/nowhere\.json"):
        entrypoints.train_reward(entrypoints.shipped_recipe("shapes"), overrides=overrides, run=tmp_path, dry_run=True)


def test_an_input_that_was_read_by_an_earlier_attempt_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StageFolder(tmp_path / "run" / "heldout-pool")
    folder.begin("settings", {})
    folder.finish(seconds=0.0)
    write_image(tmp_path / "a.png")
    path = str(write(tmp_path, [pair(1)]))
    overrides = (f"pool={{source: files, path: {path}}}", "heldout={source: files, path: /nowhere.json}")

    class Reached(Exception):
        pass

    def connect(*arguments: object, **settings: object) -> None:
        raise Reached

    monkeypatch.setattr(connection, "connect", connect)
    with pytest.raises(Reached):
        entrypoints.train_reward(entrypoints.shipped_recipe("shapes"), overrides=overrides, run=tmp_path / "run")


# -- anything ----------------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([*ADDRESSES, *TEXTS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_COLUMNS = st.sampled_from(["id", "image", "images", "question", "messages", "chosen", "rejected", "response", "label"])
_ROWS = st.lists(st.dictionaries(_COLUMNS, _VALUES, max_size=5) | _VALUES, max_size=4)
_CONTENTS = (
    st.binary(max_size=80)
    | _ROWS.map(lambda rows: json.dumps(rows).encode())
    | _ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    | _ROWS.map(lambda rows: json.dumps({"data": rows}).encode())
    | st.builds(
        bytes.__add__, st.sampled_from([b"PAR1", b"ARROW1", b"[{", b'{"a": {"', b"\xff" * 4]), st.binary(max_size=60)
    )
)
_NAMES = st.sampled_from(
    ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.tar", "a.txt", "a.json.gz", "a"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_NAMES, _CONTENTS)
def test_any_file_has_a_report_or_a_reason(name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        reports: list[SourceReport] = []
        with suppress(InputError):
            reports = inspect(PoolConfig(source="files", path=str(path)), seconds=1.0)
        for report in reports:
            assert 0 <= report.num_usable <= report.num_questions
            printed(report)
            json.loads(reports_json([report]))
