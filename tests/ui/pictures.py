"""`python -m tests.ui.pictures FOLDER`: the screenshots of docs/how-to/page.md, from the real page over states that tests play."""

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from splitinference.controller.ports import UnavailableError
from tests.ui import worlds
from tests.ui.browser import Opened, chromium, opened
from tests.ui.pages import TOKEN, Told, served

SHOWN = "() => !document.getElementById('content').hidden && document.querySelector('.chip')"
SETTLE_MS = 2000


def shot(page: Opened, path: Path, selector: str = "") -> None:
    """The whole window, or one part."""
    # A part that is taller than the window is scrolled: the header must not lie over it.
    page.page.evaluate("() => { document.querySelector('header').style.position = 'static'; }")
    page.page.wait_for_timeout(SETTLE_MS)
    target = page.page.locator(selector) if selector else page.page
    target.screenshot(path=path)
    # Few colours, so that pictures are small.
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


def played(folder: Path, browser: Any) -> None:
    """A split model, a move, decisions over time, and an answer to what-if."""
    source = worlds.simulated()
    source.advance(60)
    with served(source, what_if=True) as url, opened(browser, f"{url}#token={TOKEN}") as page:
        page.waits(SHOWN)
        shot(page, folder / "page-split.png", "#model")
        for _ in range(24):
            source.advance(50)
            page.page.wait_for_timeout(150)
        for _ in range(60):
            source.advance(10)
            page.page.wait_for_timeout(60)
            if source._made.records.moves:
                break
        page.waits("() => [...document.querySelectorAll('.chip-phase')].some(p => p.textContent)")
        shot(page, folder / "page-move.png", "#picture")
        for _ in range(60):
            source.advance(20)
            page.page.wait_for_timeout(120)
        shot(page, folder / "page-decisions.png", "#time")
        page.page.get_by_label("What if a node goes away?").fill("node1")
        page.page.get_by_role("button", name="Take it away").click()
        page.page.get_by_role("button", name="Ask the planner").click()
        page.waits("() => document.querySelector('#what-if-answer table')")
        shot(page, folder / "page-what-if.png", "#what-if")
    with served(source) as url, opened(browser, f"{url}#token={TOKEN}", color_scheme="dark") as page:
        page.waits(SHOWN)
        shot(page, folder / "page-dark.png")


def large(folder: Path, browser: Any) -> None:
    """A thousand nodes, and an API server that is away."""
    source = Told(worlds.many_nodes())
    with served(source) as url, opened(browser, f"{url}#token={TOKEN}") as page:
        page.waits(SHOWN)
        page.page.evaluate("() => document.getElementById('model').scrollIntoView()")
        shot(page, folder / "page-many.png")
        page.page.get_by_label("Search nodes").fill("zone-3")
        page.page.evaluate("() => document.getElementById('nodes').scrollIntoView()")
        shot(page, folder / "page-nodes.png")
        source.error = UnavailableError("the API server did not answer GET /api/v1/nodes: timed out")
        page.waits("() => !document.getElementById('problem').hidden")
        page.page.evaluate("() => scrollTo(0, 0)")
        shot(page, folder / "page-away.png")


def main() -> None:
    """Write all of them."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        played(folder, browser)
        large(folder, browser)


if __name__ == "__main__":
    main()
