"""The playground in a browser, on the service with real engines and experts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import CANARY, USER_SECRET

PATIENCE_MS = 120_000.0


@pytest.fixture
def page(browser: Any, http: httpx.Client) -> Iterator[Any]:
    """The page with the token typed in; every error or warning of the browser fails the test."""
    messages: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(str(http.base_url))
    page.get_by_label("Token").fill(USER_SECRET)
    yield page
    page.close()
    assert not messages


def fits(page: Any, width: int) -> bool:
    page.set_viewport_size({"width": width, "height": 900})
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_the_example_is_scored_and_the_experts_draw_boxes(page: Any) -> None:
    page.get_by_role("button", name="Load the example").click()
    page.get_by_text("The example is loaded").wait_for()
    page.get_by_role("button", name="Score").click()
    page.get_by_text("Response A is better, by").wait_for()
    better, worse = (float(text) for text in page.locator(".number").all_text_contents())
    assert 0 <= worse < better <= 1
    for letter in ("A", "B"):
        card = page.get_by_role("article", name=f"Response {letter}")
        assert card.locator("details").count() == 4
        outputs = card.locator("output").all_text_contents()
        assert all(re.fullmatch(r"p\(Yes\) [01]\.\d\d|no verdict", text) for text in outputs)
        assert len(set(outputs)) > 1 or outputs[0] != "no verdict"
        assert card.get_by_text("4 of 4").is_visible()
    page.locator(".box.supported").wait_for()
    assert page.locator(".box.supported").inner_text().startswith("\u2713 yellow circle")
    assert page.locator("#legend").get_by_text("supported").is_visible()
    page.get_by_role("radiogroup", name="Claims of").get_by_text("Response B").click()
    page.locator(".box.contradicted").wait_for()
    assert fits(page, 1280)
    assert fits(page, 390)


def test_a_broken_image_has_an_explanation_and_no_reward(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    page.locator("#file").set_input_files(broken)
    page.get_by_text("this browser cannot show it").wait_for()
    page.get_by_label("Question").fill("What is there?")
    page.get_by_role("textbox", name="Response A").fill("<b>A star</b> that is " + "l" * 400 + "ong.")
    page.get_by_role("button", name="Score").click()
    page.get_by_text("There is no reward: the image cannot be read.").wait_for()
    assert page.locator(".number").all_text_contents() == ["unscored"]
    assert page.get_by_text("<b>A star</b>").count() >= 1, "texts are never markup"
    page.get_by_text("No boxes: the image cannot be read.").wait_for()
    assert fits(page, 1280)
    assert fits(page, 390)


@pytest.mark.parametrize(("kind", "name"), [("drop", "circle.png"), ("paste", "pasted image")])
def test_an_image_may_be_dropped_or_pasted(page: Any, kind: str, name: str) -> None:
    page.evaluate(
        """([bytes, kind]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], "circle.png", {type: "image/png"}));
            const how = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
            const event = kind === "drop" ? new DragEvent(kind, how) : new ClipboardEvent(kind, how);
            document.getElementById("question").dispatchEvent(event);
        }""",
        [list(CANARY.data), kind],
    )
    page.get_by_text(f"{name}, 7 KiB, 240 \u00d7 240").wait_for()
    page.get_by_role("button", name="Remove the image").click()
    assert page.locator("#preview").is_hidden()


def test_the_page_works_by_keyboard(page: Any) -> None:
    page.get_by_label("Question").fill("Is there a star?")
    page.get_by_role("textbox", name="Response A").fill("Yes.")
    page.get_by_text("Direct", exact=True).click()
    assert page.get_by_label("K critiques each").is_disabled()
    page.get_by_role("textbox", name="Response A").press("Control+Enter")
    page.get_by_text(re.compile("Response A has a reward of|There is no reward")).wait_for()
    assert page.locator("details").count() == 1
    assert page.locator("#evidence").is_hidden(), "without an image there is no evidence"


def test_the_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    reply = httpx.get(http.base_url)
    policy = reply.headers["content-security-policy"]
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "innerHTML" not in reply.text
    assert httpx.get(http.base_url.join("/v1/example")).status_code == 401


def test_a_wrong_token_is_explained(browser: Any, http: httpx.Client) -> None:
    page = browser.new_page()
    page.goto(str(http.base_url))
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Load the example").click()
    page.get_by_text("The service asks for a token").wait_for()
    assert page.evaluate("document.activeElement.id") == "token"
    page.close()
