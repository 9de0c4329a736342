"""The report of an inspection on a console of 80 columns, and as JSON."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.curation.inspection import ExampleLook, ImageLook, SourceReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ROLES = ("question", "image", "chosen", "rejected", "ranking", "label", "reference", "group", "kind", "id", "tie")
_MAX_TEXT = 150


def print_reports(console: "Console", reports: Sequence[SourceReport]) -> None:
    """Print the reports, one below the other."""
    for number, report in enumerate(reports):
        if number:
            console.rule()
        _print_report(console, report)


def reports_json(reports: Sequence[SourceReport]) -> str:
    """Return the reports as JSON: one object, or a list of several."""
    values = [
        asdict(report) | {"num_usable": report.num_usable, "set": set_arguments("pool", report.settings)}
        for report in reports
    ]
    return json.dumps(values[0] if len(values) == 1 else values, indent=2, ensure_ascii=False)


def set_arguments(section: str, settings: Mapping[str, str]) -> list[str]:
    """Return the arguments `--set pool.source=...` that read a source."""
    return [f"--set {section}.{name}={shlex.quote(value)}" for name, value in settings.items()]


def inputs_table(reports: Mapping[str, SourceReport]) -> "Table":
    """Return the inputs of a run as a table of at most 80 columns."""
    from rich.table import Table

    table = Table(title="inputs, sampled", title_style="bold", pad_edge=False)
    for name in ("section", "rows", "schema", "checked", "usable", "pairs", "dropped"):
        table.add_column(name, justify="left" if name in ("section", "schema", "dropped") else "right")
    for section, report in reports.items():
        dropped = ", ".join(f"{reason} {count}" for reason, count in report.dropped.items()) or "-"
        table.add_row(
            section,
            _rows(report),
            report.schema,
            f"{report.num_checked:,}",
            f"{report.num_usable:,}",
            f"{report.num_pairs:,}",
            dropped,
        )
    return table


def input_notes(reports: Mapping[str, SourceReport]) -> list[str]:
    """Return what should be known of the inputs of a run: columns that are not used, repeated ids, the first drop."""
    lines = []
    for section, report in reports.items():
        if report.unused_columns:
            lines.append(f"{section}: columns that are not used: {', '.join(report.unused_columns)}")
        lines += [f"{section}: {note}" for note in report.notes]
        if report.repeated_ids:
            lines.append(f"{section}: {report.repeated_ids:,} ids occur again and end in #2, #3, ...")
        lines += [f"{section}: {problem.row}: {problem.detail}" for problem in report.problems[:1]]
    return lines


def _rows(report: SourceReport) -> str:
    return f"{report.num_rows:,}" if report.is_exact else f"about {_round(report.num_rows):,}"


def _round(number: int) -> int:
    """Return a number with two significant digits, as an estimate has no more."""
    digits = max(0, len(str(number)) - 2)
    return round(number, -digits)


def _print_report(console: "Console", report: SourceReport) -> None:
    files = "" if report.num_files == 1 else f" in {report.num_files} files"
    _line(console, "path", report.path)
    _line(console, "format", f"{report.format} ({report.format_reason})")
    _line(console, "rows", _rows(report) + files)
    _line(console, "schema", f"{report.schema}: {report.schema_title} ({report.schema_reason})")
    others = ", ".join(f"{name} ({match.score})" for name, match in report.alternatives[:4])
    if others:
        _line(console, "", f"also possible: {others}")
    _line(console, "columns", ", ".join(f"{name} ({kind})" for name, kind in report.columns.items()))
    if report.unused_columns:
        _line(console, "not used", ", ".join(report.unused_columns))
    if report.ignored_files:
        more = f" and {len(report.ignored_files) - 5} more" if len(report.ignored_files) > 5 else ""
        _line(console, "not read", ", ".join(report.ignored_files[:5]) + more)
    console.print()
    for role in (*_ROLES, *(r for r in report.roles if r not in _ROLES)):
        if names := report.roles.get(role):
            _line(console, role, "from " + ", ".join(names), bold=False)
    console.print()
    _print_counts(console, report)
    for number, example in enumerate(report.examples, start=1):
        _print_example(console, number, example)
    for note in report.notes:
        _line(console, "note", note)
    console.print("\n[bold]to use it[/bold]")
    console.print("  vlgenrm run --config RECIPE \\", highlight=False)
    arguments = set_arguments("pool", report.settings)
    for number, argument in enumerate(arguments):
        end = " \\" if number + 1 < len(arguments) else ""
        console.print(f"    {argument}{end}", markup=False, soft_wrap=True, highlight=False)


def _print_counts(console: "Console", report: SourceReport) -> None:
    checked = "all" if report.is_exact and report.num_checked >= report.num_rows else "sampled"
    text = f"{report.num_usable:,} of {report.num_questions:,} questions usable"
    if report.num_questions != report.num_checked:
        text += f", from {report.num_checked:,} rows"
    _line(console, "checked", f"{text} ({checked} rows; images of {report.num_opened} opened)")
    if report.num_pairs:
        _line(console, "pairs", f"{report.num_pairs:,} with chosen and rejected")
    if report.repeated_ids:
        _line(console, "repeated", f"{report.repeated_ids:,} ids occur again among them and end in #2, #3, ...")
    for reason, count in report.dropped.items():
        _line(console, "dropped", f"{count:,} {reason}")
        for problem in report.problems:
            if problem.reason == reason:
                _line(console, "", f"{problem.row}: {problem.detail}")


def _print_example(console: "Console", number: int, example: ExampleLook) -> None:
    console.print(f"\n[bold]example {number}[/bold]  {_escape(printable(example.row))}")
    _line(console, "  id", example.question_id, bold=False)
    if example.group and example.group != example.question_id:
        _line(console, "  group", example.group, bold=False)
    for image in example.images:
        _line(console, "  image", _image(image), bold=False)
    for name in ("text", "chosen", "rejected", "reference", "kind"):
        if value := getattr(example, name):
            _line(console, "  " + ("question" if name == "text" else name), _short(value, _MAX_TEXT), bold=False)


def _image(image: ImageLook) -> str:
    return f"{image.address}: {image.problem}" if image.problem else f"{image.address}  {image.width}x{image.height}"


def printable(text: str) -> str:
    """Return a text with control characters escaped: what a data set holds must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _line(console: "Console", name: str, text: str, *, bold: bool = True) -> None:
    """Print a name and a text that wraps beside it."""
    from rich.table import Table
    from rich.text import Text

    grid: Any = Table.grid(padding=(0, 1))
    grid.add_column(width=11, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(name, style="bold" if bold else ""), Text(printable(text)))
    console.print(grid)
