"""Growth of the stages without engines (pool, preferences, selection) with the number of rows.

For each size, the rows are generated and each stage runs once with the settings of the recipe `shapes`, on a local Ray
of this machine. Every row has a chosen and a rejected response, whose claims the (generated) detections decide, and
every pair four critiques. The images are 64 small files, so that what is measured is the handling of rows and not the
decoding of pixels.

Of each stage: rows per second and core, CPU seconds of the driver per 10^6 rows, and the driver's peak memory. The
growth exponent is the slope of log seconds over log rows between the smallest and the largest size: 1 is linear.
"""

import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vlgenrm_ray import config, pipeline
from vlgenrm_ray.bench.table import ReportRow, run_and_report
from vlgenrm_ray.cluster import connection
from vlgenrm_ray.curation import pool, preferences
from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.responses import CHOSEN, REJECTED
from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import (
    Box,
    CheckedResponse,
    Critique,
    Detection,
    Finding,
    Preference,
    Question,
    Response,
    Side,
    Truth,
)
from vlgenrm_ray.reward import selection

if TYPE_CHECKING:
    import pyarrow as pa

STAGES = ("pool", "preferences", "selection")
MIN_POOL_ROWS_PER_S = 3_000.0
"""Target of the pool, per core."""
MAX_EXPONENT = 1.05
"""Target of every stage."""
MAX_DRIVER_GIB = 1.5
"""Target of the driver's peak memory at any size."""
MAX_DRIVER_S = 60.0
"""Target of the driver's CPU seconds per 10^6 rows."""
_NUM_IMAGES = 64
_NUM_CRITIQUES = 2
_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMeasurement:
    """One run of one stage."""

    stage: str
    num_rows: int
    """Units of the stage."""
    seconds: float
    driver_s: float
    """CPU seconds of the driver's process."""
    driver_gib: float
    """Peak resident memory of the driver's process."""
    num_shards: int


def run(sizes: Sequence[int], *, num_cpus: int | None = None, out: Path | None = None) -> dict[str, Any]:
    """Measure all stages at all sizes; print a table and write a JSON report.

    Args:
        sizes: Numbers of rows.
        num_cpus: CPUs of the local Ray; default: all of the machine.
        out: Path of the report.

    Returns:
        The report.
    """
    num_cpus = num_cpus or len(os.sched_getaffinity(0))
    connection.connect("local", num_cpus=num_cpus, offline=True)
    results: dict[str, Any] = {"stages": []}

    def measure_all() -> None:
        with tempfile.TemporaryDirectory(prefix="vlgenrm-scale-") as folder:
            for size in sorted(sizes):
                for measurement in measure_stages(Path(folder) / str(size), size):
                    results["stages"].append(asdict(measurement))

    settings = {"bench": "scale", "sizes": sorted(sizes), "num_cpus": num_cpus}
    return run_and_report(
        measure_all,
        results,
        lambda results: build_rows([StageMeasurement(**row) for row in results["stages"]], num_cpus),
        console=Console(highlight=False, width=80),
        settings=settings,
        out=out,
    )


def measure_stages(folder: Path, num_rows: int) -> Iterator[StageMeasurement]:
    """Generate inputs of `num_rows` rows in a folder, and yield the measurement of each stage."""
    folder.mkdir(parents=True)
    data = write_questions(folder, num_rows)
    stages = {name: StageFolder(folder / name) for name in ("pool", "experts", "preferences", "critiques", "selection")}
    recipe = config.load(shipped_recipe("shapes"))
    source = PoolConfig(source="jsonl", path=str(data))
    yield _measure("pool", lambda: pool.run(source, target=stages["pool"]))
    _generate(stages["pool"], stages["experts"], _check_questions, CheckedResponse)
    yield _measure(
        "preferences",
        lambda: preferences.run(
            recipe.preferences, experts=recipe.experts, source=stages["experts"], target=stages["preferences"]
        ),
    )
    _generate(stages["preferences"], stages["critiques"], _criticise_pairs, Critique)
    yield _measure(
        "selection",
        lambda: selection.run(
            recipe.selection,
            judge=recipe.judge,
            checker=pipeline.critique_checker(recipe),
            source=stages["critiques"],
            preferences=stages["preferences"],
            target=stages["selection"],
        ),
    )


def build_rows(measurements: Sequence[StageMeasurement], num_cpus: int) -> Iterator[ReportRow]:
    """Make the rows of the table: per stage and size the pace and the driver's part, then the growth."""
    for stage in STAGES:
        runs = sorted((m for m in measurements if m.stage == stage), key=lambda m: m.num_rows)
        for m in runs:
            pace = m.num_rows / m.seconds / num_cpus
            minimum = MIN_POOL_ROWS_PER_S if stage == "pool" else None
            details = f"{m.seconds:.1f} s on {num_cpus} CPUs, {m.num_shards} shards"
            label = f"{stage}, {m.num_rows:,} rows"
            yield ReportRow(label=label, measured=pace, unit="rows/s", minimum=minimum, details=details)
        if not runs:
            continue
        largest = runs[-1]
        driver_s = largest.driver_s * 1e6 / largest.num_rows
        yield ReportRow(label=f"{stage}, driver per 10^6 rows", measured=driver_s, unit="s", maximum=MAX_DRIVER_S)
        if len(runs) > 1:
            yield ReportRow(label=f"{stage}, growth", measured=exponent(runs), unit="", maximum=MAX_EXPONENT)
    if measurements:
        peak = max(m.driver_gib for m in measurements)
        yield ReportRow(label="driver, peak memory", measured=peak, unit="GiB", maximum=MAX_DRIVER_GIB)


def exponent(runs: Sequence[StageMeasurement]) -> float:
    """Return the slope of log seconds over log rows from the first to the last of some runs."""
    first, last = runs[0], runs[-1]
    return math.log(last.seconds / first.seconds) / math.log(last.num_rows / first.num_rows)


def _measure(stage: str, run_stage: Callable[[], Manifest]) -> StageMeasurement:
    with _peak_memory() as peak:
        started_at, cpu_before = time.monotonic(), time.process_time()
        manifest = run_stage()
        seconds, driver_s = time.monotonic() - started_at, time.process_time() - cpu_before
    return StageMeasurement(
        stage=stage,
        num_rows=manifest.rows_in,
        seconds=round(seconds, 3),
        driver_s=round(driver_s, 3),
        driver_gib=round(peak[0] / 2**30, 3),
        num_shards=len(manifest.shards),
    )


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Sample the resident memory of this process in a thread; the list's only item is its peak in bytes."""
    peak, done = [0], threading.Event()
    page = os.sysconf("SC_PAGE_SIZE")

    def sample() -> None:
        while True:
            peak[0] = max(peak[0], int(Path("/proc/self/statm").read_text().split()[1]) * page)
            if done.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


# -- generated inputs --------------------------------------------------------------------------------------------------


def write_questions(folder: Path, num_rows: int) -> Path:
    """Write a JSON Lines file of questions with two answers each, and the images that they share."""
    from PIL import Image

    for number in range(_NUM_IMAGES):
        Image.new("RGB", (32, 32), (number, 80, 160)).save(folder / f"{number}.png")
    path = folder / "questions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            row = {
                "id": f"q{number}",
                "image": f"{number % _NUM_IMAGES}.png",
                "question": "How many red circles are there?",
                "chosen": f"There are {_count(number)} red circles.",
                "rejected": f"There are {_count(number) + 1} red circles.",
                "kind": "count",
            }
            file.write(json.dumps(row) + "\n")
    return path


def _count(number: int) -> int:
    """Return the number of red circles in the image of a question, from 2 to 4."""
    return 2 + number % 3


def _generate(
    source: StageFolder, target: StageFolder, convert: "Callable[[pa.Table], pa.Table]", cls: type[Any]
) -> None:
    """Fill a stage that engines would fill, on Ray."""
    flow.run(
        target,
        flow.read_records(source),
        lambda rows: rows.map_batches(convert, **flow.LIGHT),
        total=source.complete().rows_out,
        block_rows=flow.light_block_rows(source.complete().rows_out),
        fingerprint=cls.__name__,
        inputs={source.stage: source.data_hash()},
    )


def _check_questions(rows: "pa.Table") -> "pa.Table":
    return units_table(CheckedResponse, [_check_question(question) for question in from_table(Question, rows)])


def _check_question(question: Question) -> Unit[CheckedResponse]:
    """Check both answers of a question against detections that the chosen one counts rightly."""
    num_circles = _count(int(question.id.removeprefix("q")))
    boxes = [Box(label="circle", score=0.9, x0=8.0 * i, y0=8.0, x1=8.0 * i + 6, y1=14.0) for i in range(num_circles)]
    detections = tuple(Detection(box=box, attribute="red", attribute_score=0.95) for box in boxes)
    checked = []
    for index, (sampler, text) in enumerate(((CHOSEN, question.chosen), (REJECTED, question.rejected))):
        response = Response(id=f"{question.id}/r{index}", question=question, text=text or "", sampler=sampler)
        truth = Truth.SUPPORTED if sampler == CHOSEN else Truth.CONTRADICTED
        findings = tuple(
            Finding(claim=claim, truth=truth, expert="detector", score=0.9, boxes=tuple(boxes))
            for claim in extract_claims(response.text, load_vocabulary("shapes"), question.text)
        )
        checked.append(CheckedResponse(id=response.id, response=response, findings=findings, detections=detections))
    # As if each question had an image of its own: the experts' units are images.
    return Unit(id=question.id, records=tuple(checked))


def _criticise_pairs(rows: "pa.Table") -> "pa.Table":
    return units_table(Critique, [_criticise_pair(pair) for pair in from_table(Preference, rows)])


def _criticise_pair(pair: Preference) -> Unit[Critique]:
    critiques = []
    for side in Side:
        word = "yes" if side is Side.CHOSEN else "no"
        for k in range(_NUM_CRITIQUES):
            text = f"Claim: {pair.response(side)} Image: red circles. {'Right' if word == 'yes' else 'Wrong'}."
            critiques.append(
                Critique(
                    id=f"{pair.id}/{side.value}/c{k}",
                    preference_id=pair.id,
                    side=side,
                    round=1,
                    text=f"{text}\nVerdict: {word.capitalize()}",
                    verdict=word,
                    p_yes=0.9 - 0.1 * k if word == "yes" else 0.1 + 0.1 * k,
                    verdict_mass=0.99,
                    num_tokens=30,
                    seed=0,
                )
            )
    return Unit(id=pair.id, records=tuple(critiques))
