"""The report of a run of 100,000 pairs: the size of its page, and the memory that writing it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import report_runs

MAX_PAGE_MB = 20
_WRITE = """
import resource, sys
from pathlib import Path
from vlgenrm_ray.report import html
html.write_report([Path(sys.argv[1])])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.write_large_run(tmp_path_factory.mktemp("large") / "run", 100_000)


def write_report(run: Path) -> float:
    """Write the report in a process of its own; return its peak of memory in MiB."""
    done = subprocess.run([sys.executable, "-c", _WRITE, str(run)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def test_the_page_is_small_and_the_rows_are_not_held_in_memory(large: Path, tmp_path: Path) -> None:
    peak = write_report(large)
    assert (large / "report.html").stat().st_size < MAX_PAGE_MB * 1e6
    records = sum(pq.read_table(path).nbytes for path in large.rglob("*.parquet")) / 2**20
    of_small_run = write_report(report_runs.write_large_run(tmp_path / "small", 2_000))
    # Ids and rewards are held, tens of bytes each; texts are not.
    assert records > 400
    assert peak - of_small_run < records / 4, f"{peak:.0f} MiB against {of_small_run:.0f} MiB for 2,000 pairs"


def test_a_browser_shows_the_page(browser: Any, large: Path) -> None:
    if not (large / "report.html").exists():
        write_report(large)
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((large / "report.html").as_uri())
    assert messages == []
    assert page.locator(".example").count() > 50
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("#stages-1").get_by_text("100,000").count() >= 6
    page.close()
