"""The page in a real browser, from the real server: what people see, with keyboard and screen reader, and when things go wrong."""

from dataclasses import replace
from typing import Any

import pytest

from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.ui.access import Identity, ReviewedAccess
from tests.controller.world import NAMESPACE
from tests.ui import worlds
from tests.ui.browser import Opened, opened
from tests.ui.pages import TOKEN, Told, served
from tests.ui.test_access import Cluster

KEY = worlds.KEY
SHOWN = "() => !document.getElementById('content').hidden"
ANIMATED = "() => document.getAnimations().filter(a => a.effect?.target?.classList?.contains('chip')).length"


def at(url: str) -> str:
    return f"{url}#token={TOKEN}"


def chips(page: Opened) -> dict[str, str]:
    """Layers → the node on which the page draws them."""
    pair = "c => [c.querySelector('.chip-layers').textContent, c.closest('.card').dataset.key]"
    return dict(page.page.evaluate(f"() => [...document.querySelectorAll('.chip')].map({pair})"))


def test_the_model_is_split_and_a_segment_moves_before_ones_eyes(browser: Any):
    source = worlds.simulated()
    source.advance(1000)
    with served(source) as url, opened(browser, at(url)) as page:
        page.waits("() => document.querySelectorAll('.chip').length === 2")
        assert page.page.evaluate(ANIMATED) or page.page.evaluate("() => document.querySelectorAll('.chip.new').length"), "they flew there"
        before = chips(page)
        assert before == {"layers 0–2": "node0", "layers 3–17": "node1"}
        assert "node0" not in page.page.url, "the address has no token and no state"
        page.page.evaluate(
            "() => { window.flown = 0; setInterval(() => { if (document.querySelector('.chip.flying')) window.flown += 1; }, 20); }"
        )
        for _ in range(40):
            source.advance(10)
            page.page.wait_for_timeout(60)
            if len(source._made.records.moves):
                break
        page.waits("() => [...document.querySelectorAll('.chip-phase')].some(p => p.textContent)")
        source.advance(120)
        page.waits("() => document.querySelector('[data-key=node2] .chip') && !document.querySelector('[data-key=node0] .chip')")
        assert chips(page) == {"layers 0–2": "node2", "layers 3–17": "node1"}
        page.waits("() => window.flown > 0")
        assert "layers 0–2 move from node0 to node2" in page.page.locator("#said").text_content()
        page.waits("() => document.querySelector('#decisions tbody tr')")
        decision = page.text("#decisions tbody tr")
        assert "migration" in decision
        assert "96 % used by others" in decision
        assert page.page.locator("#picture").get_attribute("aria-label") == (
            "utilization-step is split into 2: layers 0–2 on node2, layers 3–17 on node1."
        )


def test_where_people_want_no_motion_nothing_flies_and_the_new_place_is_marked(browser: Any):
    source = worlds.simulated()
    source.advance(1000)
    with served(source) as url, opened(browser, at(url), reduced_motion="reduce") as page:
        page.waits("() => document.querySelectorAll('.chip').length === 2")
        page.page.evaluate(
            "() => { window.flown = 0; setInterval(() => { if (document.querySelector('.chip.flying')) window.flown += 1; }, 10); }"
        )
        source.advance(500)
        page.waits("() => document.querySelector('[data-key=node2] .chip.new')")
        page.page.wait_for_timeout(300)
        assert page.page.evaluate("() => window.flown") == 0


def test_while_the_api_server_is_away_the_page_says_so_with_the_age_and_recovers(browser: Any):
    source = Told(worlds.served())
    with served(source) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        page.waits("() => document.getElementById('link').textContent === 'Live'")
        assert page.page.locator("#problem").is_hidden()
        source.error = UnavailableError("the API server did not answer GET /api/v1/nodes: timed out")
        page.waits("() => !document.getElementById('problem').hidden")
        assert "did not answer" in page.text("#problem")
        assert "last known state" in page.text("#problem")
        page.waits("() => /^Shown as of \\d+ s ago$/.test(document.getElementById('link').textContent)")
        assert page.page.locator(".chip").count() == 2, "what was shown stays"
        source.error = None
        page.waits("() => document.getElementById('problem').hidden && document.getElementById('link').textContent === 'Live'")


def test_when_its_server_goes_and_comes_back_the_page_comes_back(browser: Any):
    source = Told(worlds.served())
    with served(source) as url:
        port = int(url.rstrip("/").rsplit(":", 1)[1])
    with served(source, port=port) as url:
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(at(url))
        tab.wait_for_function(SHOWN)
    tab.wait_for_function("() => document.getElementById('problem').textContent.includes('does not answer')")
    with served(source, port=port):
        tab.wait_for_function("() => document.getElementById('problem').hidden", timeout=60_000)
    context.close()


def test_a_cluster_that_was_never_read_is_no_empty_cluster(browser: Any):
    source = Told(error=RefusedError("This account may not list and watch SplitInferences in all namespaces."))
    with served(source) as url, opened(browser, at(url)) as page:
        page.waits("() => !document.getElementById('problem').hidden")
        assert "may not list and watch SplitInferences" in page.text("#problem")
        assert page.page.locator("#content").is_hidden()


def test_without_a_resource_the_page_says_what_to_do(browser: Any):
    with served(Told(worlds.EMPTY)) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        assert "There is no SplitInference here" in page.text("#models")
        for part in ("#model", "#time", "#what-if"):
            assert page.page.locator(part).is_hidden()
        assert "No node is known here." in page.text("#nodes")


def test_a_resource_that_was_never_planned_says_so(browser: Any):
    with served(Told(worlds.never_planned())) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        assert "The operator has not looked at this resource yet" in page.text("#model-message")
        assert "not split yet" in page.text(".bar")
        assert "There is no plan yet" in page.text("#segments")
        assert "No decision has been made yet." in page.text("#decisions")


def test_hostile_names_and_messages_are_text(browser: Any):
    with served(Told(worlds.hostile()), what_if=True) as url, opened(browser, at(url)) as page:
        page.waits("() => document.querySelectorAll('.chip').length === 2")
        page.page.wait_for_timeout(500)
        assert page.page.evaluate("() => [document.images.length, document.scripts.length]") == [0, 1]
        for part in ("#model-title", "#model-message", "#decisions", "#nodes-list", "#links-list", "#notes", "#models"):
            assert "<img src=x onerror=alert(1)>" in page.page.locator(part).text_content()
        assert page.page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), "and they do not widen the page"


def test_scripts_that_get_in_all_the_same_do_not_run(browser: Any):
    """The last line of defence: the browser itself refuses inline scripts, other servers and HTML from texts."""
    with served(Told(worlds.served())) as url, opened(browser, at(url), clean=False) as page:
        page.waits(SHOWN)
        tried = page.page.evaluate("""() => {
          const found = [];
          const script = document.createElement('script');
          script.appendChild(document.createTextNode('window.ran = true'));
          document.body.append(script);
          found.push(Boolean(window.ran));
          try { document.body.innerHTML = '<b>x</b>'; found.push(true); } catch { found.push(false); }
          return found;
        }""")
        assert tried == [False, False]
        assert page.page.evaluate("() => fetch('https://example.com').then(() => true, () => false)") is False


def test_a_thousand_nodes_stay_usable(browser: Any):
    with served(Told(worlds.many_nodes())) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        page.waits("() => document.querySelector('#nodes-list tbody tr')")
        assert page.page.locator("#nodes-list tbody tr").count() == 50
        assert page.page.locator(".card").count() <= 24
        assert page.page.evaluate("() => document.querySelectorAll('*').length") < 5000
        assert "1–50 of 1000" in page.text("#nodes-list .count")
        bands = page.page.locator("#fleet .band-count").all_inner_texts()
        assert sum(int(text.split()[0]) for text in bands) == 1000
        page.page.get_by_label("Search nodes").fill("node-0777")
        page.waits("() => document.querySelectorAll('#nodes-list tbody tr').length === 1")
        assert "node-0777" in page.text("#nodes-list tbody")
        page.page.get_by_label("Search nodes").fill("nobody")
        page.waits("() => document.querySelectorAll('#nodes-list tbody tr').length === 0")
        assert "Nothing matches" in page.text("#nodes-list")
        page.page.get_by_label("Search nodes").fill("")
        page.page.locator("#Nodes-filter").select_option("not usable")
        page.waits("() => /of 19 /.test(document.querySelector('#nodes-list .count').textContent)")
        page.page.locator("#Nodes-filter").select_option("all")
        page.page.locator("#nodes-list").get_by_role("button", name="Next").click()
        page.waits("() => document.querySelector('#nodes-list .count').textContent.startsWith('51–100')")
        page.page.get_by_label("Search models").fill("model-077")
        page.waits("() => document.querySelectorAll('#models-list tbody tr').length === 1")
        page.page.get_by_role("button", name=f"{NAMESPACE}/model-077").click()
        assert page.text("#model-title") == f"{NAMESPACE}/model-077"
        assert "resource=team%2Fmodel-077" in page.page.url


def test_rows_keep_focus_and_order_while_figures_change(browser: Any):
    source = Told(worlds.many_nodes(60, 3))
    with served(source) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        page.page.get_by_role("button", name=f"{NAMESPACE}/model-001").focus()
        nodes = {name: {**node, "usedByOthers": 0.99} for name, node in source.document.nodes.items()}
        source.document = replace(source.document, nodes=nodes)
        page.waits("() => document.querySelector('#nodes-list tbody').textContent.includes('99 %')")
        assert page.page.evaluate("() => document.activeElement.textContent") == f"{NAMESPACE}/model-001"


def test_everything_can_be_done_with_the_keyboard(browser: Any):
    with served(Told(worlds.many_nodes(60, 3)), what_if=True) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
        page.page.keyboard.press("Enter")
        reached = set()
        for _ in range(60):
            page.page.keyboard.press("Tab")
            reached.add(
                page.page.evaluate(
                    "() => document.activeElement.id || document.activeElement.textContent || document.activeElement.tagName"
                )
            )
        assert {
            f"{NAMESPACE}/model-002",
            "Nodes-search",
            "Nodes-filter",
            "what-if-gone",
            "Ask the planner",
            "Memory: others, we, free",
        } <= reached
        page.page.locator("#nodes-list").get_by_role("button", name="Memory: others, we, free").focus()
        page.page.keyboard.press("Enter")
        page.waits("() => document.querySelector('#nodes-list [aria-sort=ascending]').textContent.startsWith('Memory')")
        page.page.keyboard.press("Enter")
        page.waits("() => document.querySelector('#nodes-list [aria-sort=descending]')")


def test_people_sign_in_with_a_token_and_see_what_they_may(browser: Any):
    cluster = Cluster({"good": Identity("alice"), "poor": Identity("bob")}, {("alice", "splitinferences", NAMESPACE)})
    with served(Told(worlds.served()), ReviewedAccess(cluster, "page")) as url, opened(browser, url, clean=False) as page:
        page.page.get_by_label("Token").fill("guess")
        page.page.get_by_role("button", name="Sign in").click()
        page.waits("() => document.getElementById('sign-in-problem').textContent.includes('does not accept this token')")
        page.page.get_by_label("Token").fill("poor")
        page.page.get_by_role("button", name="Sign in").click()
        page.waits("() => document.getElementById('sign-in-problem').textContent.includes('bob may not list SplitInferences')")
        page.page.get_by_label("Token").fill("good")
        page.page.get_by_role("button", name="Sign in").click()
        page.waits(SHOWN)
        assert "You may not list nodes" in page.text("#notes")
        assert KEY in page.text("#models")
        page.page.reload()
        page.waits(SHOWN)
        page.page.get_by_role("button", name="Sign out").click()
        page.waits("() => !document.getElementById('sign-in').hidden")
        assert not [text for text in page.errors if "violates" in text]


def test_without_the_token_of_the_url_nothing_is_shown(browser: Any):
    with served(Told(worlds.served())) as url, opened(browser, url, clean=False) as page:
        page.waits("() => !document.getElementById('problem').hidden")
        assert "whole URL" in page.text("#problem")
        assert page.page.locator("#sign-in").is_hidden()


def test_the_planner_answers_what_if(browser: Any):
    source = worlds.simulated()
    source.advance(60)
    with served(source, what_if=True) as url, opened(browser, at(url)) as page:
        page.waits(SHOWN)
        page.page.get_by_label("What if a node goes away?").fill("nowhere")
        page.page.get_by_role("button", name="Take it away").click()
        assert page.text("#what-if-form .bad-text") == "There is no node nowhere."
        page.page.get_by_label("What if a node goes away?").fill("node0")
        page.page.get_by_role("button", name="Take it away").click()
        assert "node0 goes away" in page.text(".changes")
        page.page.get_by_role("button", name="Ask the planner").click()
        page.waits("() => document.querySelector('#what-if-answer table')")
        answer = page.text("#what-if-answer")
        assert "proven best for these figures" in answer
        assert "moves from node0" in answer or "new cut" in answer
        assert "If nothing moves:" in answer
        page.page.get_by_role("button", name="Undo: node0 goes away").click()
        assert "node0" not in page.text(".changes")


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_on_small_screens(browser: Any, width: int):
    with (
        served(Told(worlds.many_nodes(60, 3)), what_if=True) as url,
        opened(browser, at(url), viewport={"width": width, "height": 800}) as page,
    ):
        page.waits(SHOWN)
        assert page.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["served", "empty", "never planned", "many", "away", "sign in"])
def test_tools_for_accessibility_find_nothing(browser: Any, scheme: str, state: str):
    """axe-core's rules, contrast among them. It comes in by the driver, past the page's own policy."""
    documents = {"empty": worlds.EMPTY, "never planned": worlds.never_planned(), "many": worlds.many_nodes()}
    source = Told(documents.get(state, worlds.served()))
    access = ReviewedAccess(Cluster(), "page") if state == "sign in" else None
    with served(source, access, what_if=True) as url:
        _nothing_is_found(browser, source, at(url) if access is None else url, state, scheme)


def _nothing_is_found(browser: Any, source: Told, url: str, state: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, url, clean=False, color_scheme=scheme, bypass_csp=True) as page:
        page.waits("() => !document.getElementById('sign-in').hidden" if state == "sign in" else SHOWN)
        if state == "away":
            source.error = UnavailableError("away")
            page.waits("() => !document.getElementById('problem').hidden")
        page.page.wait_for_timeout(1500)
        found = Axe().run(page.page)
        assert not found.response["violations"], found.generate_report()
