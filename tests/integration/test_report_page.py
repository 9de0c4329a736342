"""The HTML report in a browser, opened from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_runs

from vlgenrm_ray.report import html


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of one run, and of two side by side."""
    folder = tmp_path_factory.mktemp("reports")
    run = report_runs.write_run(folder / "run")
    other = report_runs.write_run(folder / "other", rewards=(0.9, 0.6))
    for path, scale in ((run, 0.3), (other, 1.0)):
        report_runs.write_best_of_n(path / "round-1" / "benchmarks" / "best_of_n.json", scale=scale)
    return {"one": html.write_report([run]), "two": html.write_report([run, other], folder / "two.html")}


@pytest.fixture(params=["light", "dark"])
def context(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = browser.new_context(color_scheme=request.param, offline=True)
    yield context
    context.close()


@pytest.mark.parametrize("report", ["one", "two"])
def test_the_page_is_accessible_fits_a_phone_and_reports_no_error(
    context: Any, reports: dict[str, Path], report: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = context.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(reports[report].as_uri())
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        widest = "Math.max(...[...document.querySelectorAll('caption, nav ul')].map(e => e.scrollWidth))"
        assert page.evaluate(f"{widest} <= innerWidth"), f"a text is cut off at {width}"
    assert messages == []
    # Contrast, names, roles, keyboard access of scrollable regions, ...
    results = Axe().run(page)
    assert results.response["passes"]
    assert results.violations_count == 0, results.generate_report()


def test_a_page_that_is_read_in_the_dark_is_printed_dark_on_white(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(reports["one"].as_uri())
    colour = "getComputedStyle(document.body).color.match(/\\d+/g).map(Number)"
    assert min(page.evaluate(colour)) > 200
    page.emulate_media(media="print", color_scheme="dark")
    assert max(page.evaluate(colour)) < 60
    page.close()


def test_examples_are_filtered_with_the_keyboard(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(reports["one"].as_uri())
    gallery = page.locator("[data-gallery]")
    shown = gallery.locator(".example:not([hidden])")
    total = shown.count()
    gallery.get_by_label("Group").focus()
    page.keyboard.type("lost")
    assert shown.count() == 4
    page.keyboard.press("Tab")
    page.keyboard.type("count")
    assert 0 < shown.count() < 4
    assert gallery.get_by_role("status").inner_text() == f"{shown.count()} of {total} shown"
    page.keyboard.press("Tab")
    page.keyboard.type("nothing like this")
    assert shown.count() == 0
    page.close()


def test_a_critique_opens_and_its_text_is_only_text(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(reports["one"].as_uri())
    critique = page.locator("[data-gallery] details").first
    critique.locator("summary").press("Enter")
    assert report_runs.HOSTILE in critique.locator("pre").inner_text()
    assert page.title() != "broken"
    page.close()
