"""Report of a bench: a table with targets, 80 columns wide, and a JSON file."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vlgenrm_ray.engines import vllm_config
from vlgenrm_ray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """One measured value with its target."""

    label: str
    measured: float
    unit: str = "x"
    minimum: float | None = None
    """Target: at least this."""
    maximum: float | None = None
    """Target: at most this."""
    details: str = ""
    """Values that `measured` was computed from; printed below the row, a line each."""

    @property
    def target(self) -> str:
        """The target as it is printed; empty without one."""
        if self.minimum is not None:
            return f">= {self.minimum:g}"
        return "" if self.maximum is None else f"<= {self.maximum:g}"

    @property
    def met(self) -> bool | None:
        """True if the target was met; None without a target."""
        if self.minimum is not None:
            return self.measured >= self.minimum
        return None if self.maximum is None else self.measured <= self.maximum


def format_rows(rows: Iterable[ReportRow]) -> Iterator[str]:
    """Format rows as lines of at most 80 columns: each value with its target, its details below it."""
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        yield f"{row.label:<44}{row.measured:>9.2f} {row.unit:<7}  {row.target:<7} {verdict}".rstrip()
        yield from (f"    {line}" for line in row.details.splitlines())


def select_parts(chosen: Sequence[str], *, default: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a bench to run: `chosen`, or `default` if that is empty.

    Raises:
        InputError: A chosen part is not `known`.
    """
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"--parts: {unknown[0]!r} is not one of {', '.join(known)}")
    return tuple(chosen or default)


def run_and_report(
    measure: Callable[[], Any],
    results: Mapping[str, Any],
    build_rows: Callable[[Mapping[str, Any]], Iterable[ReportRow]],
    *,
    console: Console,
    settings: Mapping[str, Any],
    out: Path | None,
) -> dict[str, Any]:
    """Run a bench, print its table and write its JSON report.

    Args:
        measure: Runs the bench; fills `results` part by part.
        results: Results of the bench. If `measure` raises, those of the finished parts are printed and written.
        build_rows: Makes the rows of the table from the results.
        console: Receives the table.
        settings: Entries of the report that state what was measured.
        out: Path of the JSON report, or None for none.

    Returns:
        The report: `settings`, versions, number of cores, and `results`.
    """
    report = dict(settings) | {"versions": vllm_config.versions(), "cores": len(os.sched_getaffinity(0))}
    try:
        measure()
    finally:
        report["results"] = results
        for line in format_rows(build_rows(results)):
            console.print(line, markup=False)
        if out:
            out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
