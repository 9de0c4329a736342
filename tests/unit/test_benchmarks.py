"""Benchmarks: table, files, stored answers, command line, and a benchmark of another package."""

import base64
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import factories
import pytest
from benchmark_files import score, write_lines
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from vlgenrm_ray.cli import app
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.evaluation import benchmarks
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, score_answers
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, match_answers, read_rows, unique_ids
from vlgenrm_ray.records import Judgement, PairResult, Preference


def pope_files(tmp_path: Path, answers: list[str]) -> tuple[Path, Path]:
    labels = ["yes", "yes", "no", "no"]
    questions = [
        {"question_id": i, "image": "x.jpg", "text": "Is there a dog?", "label": label}
        for i, label in enumerate(labels)
    ]
    rows = [{"question_id": i, "text": text} for i, text in enumerate(answers)]
    return write_lines(tmp_path / "data.json", questions), write_lines(tmp_path / "answers.jsonl", rows[::-1])


def test_every_benchmark_can_be_loaded() -> None:
    for name in benchmarks.BENCHMARKS:
        assert benchmarks.load(name).roles is not None


def test_missing_and_repeated_answers_are_refused(tmp_path: Path) -> None:
    data, answers = pope_files(tmp_path, ["Yes.", "No.", "Yes."])
    with pytest.raises(InputError, match=r"1 of 4 questions have no answer, the first is 3; .*--allow-missing"):
        score("pope", data, answers)
    result = score_answers(BenchmarkTask(name="pope", data=data), answers, allow_missing=True).as_json()
    assert result["not_answered"] == 1
    assert result["counts"]["items"] == 3
    write_lines(answers, [{"question_id": 1, "text": "Yes."}] * 2)
    with pytest.raises(InputError, match="question 1 is answered 2 times, but asked 1 times"):
        score("pope", data, answers)
    write_lines(answers, [{"question_id": 77, "text": "Yes."}])
    with pytest.raises(InputError, match="answers none of the 4 questions"):
        score("pope", data, answers)
    with pytest.raises(InputError, match="cannot be read"):
        score("pope", tmp_path / "gone.json", answers)


def test_rows_are_read_from_every_container(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "a\u2028b"}, {"id": 2, "text": "c"}]
    lines = write_lines(tmp_path / "rows.jsonl", rows, ensure_ascii=False)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    (tmp_path / "marked.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    for path in (
        lines,
        *(tmp_path / f"rows.{name}" for name in ("json", "parquet", "jsonl.gz")),
        tmp_path / "marked.json",
    ):
        assert read_rows(path) == rows, path
    (tmp_path / "rows.tsv").write_text('id\ttext\n1\t"two\nlines"\n')
    assert read_rows(tmp_path / "rows.tsv") == [{"id": "1", "text": "two\nlines"}]
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b cut")
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "rows.jsonl.gz")
    (tmp_path / "rows.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="expected objects"):
        read_rows(tmp_path / "rows.json")


def test_images_are_resolved_from_paths_uris_bytes_and_structs(tmp_path: Path) -> None:
    images = ImageResolver(root="/data", store=tmp_path)
    assert images.resolve(["a.jpg", {"bytes": None, "path": "b.jpg"}]) == ("/data/a.jpg", "/data/b.jpg")
    assert images.resolve("s3://bucket/a.jpg") == ("s3://bucket/a.jpg",)
    (path,) = images.resolve({"bytes": b"pixels", "path": "c.jpg"})
    assert Path(path).read_bytes() == b"pixels"
    assert images.resolve(None) == ()
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    (path,) = images.resolve(base64.b64encode(png.getvalue()).decode())
    assert Path(path).read_bytes() == png.getvalue()
    assert ImageResolver(root="/data").resolve(b"pixels") == ()


def test_a_video_is_represented_by_frames_evenly_spaced(tmp_path: Path) -> None:
    folder = tmp_path / "video" / "v0"
    folder.mkdir(parents=True)
    for i in range(63):
        (folder / f"{i:03}.jpg").touch()
    frames = ImageResolver(root=str(tmp_path)).frames("video/v0")
    assert [Path(frame).stem for frame in frames] == [f"{i:03}" for i in range(0, 63, 2)]
    assert ImageResolver(root="/data").frames("video/gone") == ("/data/video/gone",)


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_repeated_ids_are_made_unique_and_matched_in_order(keys: list[str]) -> None:
    assert len(set(unique_ids(keys))) == len(keys)
    rows = [{"id": key, "line": line} for line, key in enumerate(keys)]
    matched = match_answers(rows, keys, lambda row: row["id"], Path("answers"))
    assert [row and row["line"] for row in matched] == list(range(len(keys)))


def test_heldout_pairs_are_scored_from_the_folders_of_a_run(tmp_path: Path) -> None:
    pairs = [factories.preference(f"q/p{i}", kind="count") for i in range(4)]
    heldout, evaluation = StageFolder(tmp_path / "heldout"), StageFolder(tmp_path / "round-1" / "evaluation")
    for folder in (heldout, evaluation):
        folder.begin("settings", {})
    write_units(heldout, Preference, [Unit(id=p.id, records=(p,)) for p in pairs])

    def result(pair: Preference, chosen: float, rejected: float, suffix: str = "") -> PairResult:
        sides = {name: Judgement(id=name, reward=r, status="ok") for name, r in (("c", chosen), ("r", rejected))}
        return PairResult(
            id=pair.id + suffix, preference_id=pair.id, kind="count", chosen=sides["c"], rejected=sides["r"]
        )

    results = [result(pair, 0.9, 0.1 if i else 0.95) for i, pair in enumerate(pairs)]
    results.append(result(pairs[0], 0.5, 0.5, "/no-image"))
    write_units(evaluation, PairResult, [Unit(id=r.id, records=(r,)) for r in results])
    report = score("heldout_pairs", heldout.path, evaluation.path)
    # Three of four pairs are right. All four are about one image, so they count as one observation at most.
    assert report["metrics"]["pairwise accuracy"]["ours"]["value"] == 0.75
    assert report["baselines"]["no image"]["ours"] | {"ci95": None} == {"value": 0.5, "num": 1, "ci95": None}
    with pytest.raises(InputError, match="no shards"):
        score("heldout_pairs", tmp_path, evaluation.path)


PACKAGE = '''
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import read_rows
from vlgenrm_ray.evaluation.metrics import wilson_interval
import numpy as np


class Parity:
    """The share of answers of an even length."""

    roles = ()

    def read(self, data, images):
        return read_rows(data)

    def read_answers(self, answers, items):
        return [row["text"] for row in read_rows(answers)][:len(items)]

    def score(self, items, predictions):
        flags = np.array([float(len(text) % 2 == 0) for text in predictions])
        return BenchmarkReport(metrics=(MetricRow(name="even share", ours=wilson_interval(flags)),))
'''


def test_a_benchmark_of_another_package_is_named_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_benchmarks.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    data, answers = pope_files(tmp_path, ["ab", "abc", "abcd", "abcde"])
    assert score("my_benchmarks:Parity", data, answers)["metrics"]["even share"]["ours"]["value"] == 0.5
    sys.modules.pop("my_benchmarks")


def test_an_unknown_benchmark_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmark 'popee' is unknown; choose from amber, best_of_n"):
        score("popee", tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="cannot be imported"):
        score("no_such_package:Benchmark", tmp_path, tmp_path)


def test_the_command_prints_every_rule_and_writes_json(tmp_path: Path) -> None:
    data, answers = pope_files(tmp_path, ["Yes.", "No.", "Yes.", "No."])
    out = tmp_path / "results.json"
    arguments: list[Any] = ["benchmark", "pope", "--data", data, "--answers", answers, "--out", out]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(len(line) for line in lines if not line.startswith("written")) <= 80
    assert any(line.split()[:5] == ["accuracy", "0.5000", "0.0000", "0.5000", "0.500"] for line in lines)
    (result,) = json.loads(out.read_text())["results"]
    assert result["metrics"]["accuracy"]["rules"] == {"official": 0.5, "lmms-eval": 0.0, "VLMEvalKit": 0.5}
    assert result["main"] == "accuracy"


def test_the_command_refuses_names_without_files(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["benchmark", "pope", "amber", "--data", "x", "--answers", "y"])
    assert isinstance(done.exception, InputError)
    assert "1 --data for 2 benchmarks" in str(done.exception)
