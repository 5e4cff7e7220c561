"""A headless Chromium for tests of the page: Debian's, driven by playwright. `make ui-test` brings both."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WANTED = "UI_TEST"
"""Set by `make ui-test`: then a browser that is missing is a failure, else its tests are skipped."""


def program() -> str:
    """The browser's path; the tests are skipped, or fail, where it or playwright is missing."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return missing("playwright is not installed")
    return found or missing(f"none of {', '.join(PROGRAMS)} is installed")


def missing(why: str) -> str:
    if os.environ.get(WANTED):
        pytest.fail(f"{why}: make ui-test installs it")
    pytest.skip(f"{why}: make ui-test installs it")


@dataclass
class Opened:
    """A page, and what must not happen on it: errors, requests to other servers, dialogs."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def waits(self, expression: str, argument: Any = None) -> None:
        """Until the JavaScript expression is true."""
        self.page.wait_for_function(expression, arg=argument, timeout=60_000)


@contextmanager
def opened(browser: Any, url: str, *, clean: bool = True, **context: Any) -> Iterator[Opened]:
    """The page in a fresh profile. `clean`: at the end nothing went wrong in it, and nothing but its own server was asked."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "timezone_id": "UTC", "locale": "en-GB", **context})
    page = made.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))

    def dismiss(dialog: Any) -> None:
        found.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(url)
    try:
        yield found
        strangers = [asked for asked in found.requests if not asked.startswith(url.split("#", maxsplit=1)[0].rstrip("/"))]
        assert not strangers
        assert not clean or not found.errors, found.errors
    finally:
        made.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    path = program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        try:
            yield browser
        finally:
            browser.close()
