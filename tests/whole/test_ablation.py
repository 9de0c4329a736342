"""A small ablation on real engines, killed between two cells and continued. About seven minutes on two cores."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlgenrm_ray.entrypoints import RECIPES

LIMIT_S = 900.0
CELLS = ("reference", "mode=direct", "labels=self selection=all")


def start(run: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "ablate", "--config", str(RECIPES / "ablation_small.yaml")]
    return subprocess.Popen(
        [*command, "--run", str(run)],
        env=os.environ | {"RAY_ADDRESS": "", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_ablation_continues_after_a_kill_and_reports_every_cell(tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not list((tmp_path / "cells").glob("*.json")):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no finished cell: {process.communicate()[0]}")
        time.sleep(0.5)
    process.kill()
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").glob("*/manifest.json")}
    finished |= {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}

    process = start(tmp_path)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "nothing finished is made again"

    result = json.loads((tmp_path / "ablation.json").read_text())
    assert (result["num_finished"], result["failures"]) == (len(CELLS), [])
    rows = {row["cell"]: row for row in result["rows"]}
    assert set(rows) == {"base", "base (mode=direct)", *CELLS}
    for name in CELLS:
        assert rows[name]["accuracy"]["num"] == 60
        assert rows[name]["num_steps"] == 8
        assert rows[name]["num_examples"][0] <= 64
    # Equal examples where there are enough; the base judge's own labels are often wrong, the experts' never here.
    assert rows["mode=direct"]["num_examples"] == rows["labels=self selection=all"]["num_examples"] == [64]
    assert rows["labels=self selection=all"]["wrong_label_share"] > 0.1
    assert rows["reference"]["wrong_label_share"] < 0.05
    assert rows["mode=direct"]["tokens_per_response"] < 3 < rows["reference"]["tokens_per_response"]
    assert rows["reference"]["blind_accuracy"]["num"] > 0

    assert {judge["cell"] for judge in result["models"]} == set(CELLS)
    assert all((Path(judge["model"]) / "config.json").is_file() for judge in result["models"])

    diagnosis = result["diagnosis"]["reference"]
    assert diagnosis["margins"]["round 1"]["num_critiques"] > 0
    for judge in ("base", "round 1"):
        assert [point["k"] for point in diagnosis["judges"][judge]["voting"]] == [1, 2, 4, 8]
        assert diagnosis["judges"][judge]["swapped"]["num_pairs"] == 30

    table = output[output.index("accuracy on 60 test pairs") :]
    assert max(map(len, table.splitlines()[:-1])) <= 80
    with (tmp_path / "ablation.csv").open() as file:
        assert [line["cell"] for line in csv.DictReader(file)] == [row["cell"] for row in result["rows"]]
    page = (tmp_path / "report.html").read_text()
    assert "Does a critique depend on the image?" in page
