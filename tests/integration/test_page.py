"""The page at `/` in a real headless Chromium, in front of a real server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from crossrank.bundles.catalog import BUILTIN, catalog_model
from tests.browser import Page, run_pasted, running_browser
from tests.conftest import ROOT
from tests.server_process import CROSSRANK, RunningServer, running_server

SECOND_MODEL = "cross-encoder/ms-marco-MiniLM-L6-v2"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
# Whatever a shell, JSON, Python or a terminal might take for its own.
AWKWARD_QUERY = 'What\'s "quoted" in Zürich\nby $HOME `id` !! \\n \\u0041 %s {0}?'
AWKWARD_PASSAGES = [
    "It's a 'single' and a \"double\" quote, and a backslash at the end \\",
    "two\nlines\tand a tab, then $(touch owned) `touch owned` ; touch owned #",
    "日本語 русский 🙂👩‍👩‍👧 e\u0301 \u202edesrever\u202c \u2028 \x07 \x1b[31m \x7f",
    "</pre></script><!-- ${x} {{ x }} \"\"\" ''' \\x41 '\\'' EOF",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with running_browser() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def page(browser: webdriver.Chrome, server: RunningServer) -> Page:
    opened = Page(browser, server.base_url)
    opened.emulate()
    return opened


def test_the_card_shows_the_catalogue_and_the_status_that_of_the_server(page: Page, server: RunningServer) -> None:
    state = httpx.get(f"{server.base_url}/page/state.json").json()
    assert page.text("#status") == "Ready"
    assert page.text("#version") == state["version"]
    assert page.text(".card h3") == BUILTIN.model_id
    figures = dict(zip(page.texts(".figures dt"), page.texts(".figures dd"), strict=True))
    assert figures == {
        "Layers / hidden": f"{BUILTIN.layers} / {BUILTIN.hidden}",
        "NDCG@10": f"{BUILTIN.ndcg_at_10:.2f}",
        "MRR@10": "–",
        "Docs/s, V100": "–",
        "USD / 1,000 docs": f"{BUILTIN.usd_per_1000_docs:.3f}",
        "Tier batch": f"{BUILTIN.usd_per_1000_docs / 2:.3f}",
        "Licence": BUILTIN.licence,
    }
    assert page.texts(".runs span") == [
        "ready",
        state["models"][0]["engine"],
        state["models"][0]["precision"],
        "512 tokens",
    ]
    assert BUILTIN.note in page.text("#notes")
    assert f"Licence: {BUILTIN.terms}" in page.text("#notes")
    assert BUILTIN.protocol in page.text("#notes")
    assert f"Price: {BUILTIN.price_basis}." in page.text("#notes")


def test_a_rerank_shows_scores_bars_and_the_new_order_against_the_input(page: Page, server: RunningServer) -> None:
    query, passages = "how many people live in berlin", ["Museums.", "Paris.", "Berlin has 3,520,031 inhabitants."]
    page.fill(query, passages)
    page.rerank()
    answer = httpx.post(f"{server.base_url}/v1/rerank", json={"query": query, "documents": passages}).json()
    assert page.ranking() == [result["index"] for result in answer["results"]]
    assert page.ranking()[0] == 2
    assert page.texts("#list .text") == [passages[i] for i in page.ranking()]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert [float(score) for score in page.texts("#list .score")] == pytest.approx(scores, abs=5e-5)
    widths = [
        bar.rect["width"] / track.rect["width"]
        for bar, track in zip(page.all("#list .bar div"), page.all("#list .bar"), strict=True)
    ]
    assert widths == pytest.approx(scores, abs=0.02)
    assert page.texts("#list .move") == [
        f"up {index - rank}" if index > rank else f"down {rank - index}" if index < rank else "same place"
        for rank, index in enumerate(page.ranking())
    ]
    assert len(page.all("#list > svg path")) == len(passages)
    assert "Best: passage 3." in page.text("#summary")
    facts = page.text("#facts")
    assert "In the browser" in facts
    assert f"Tokens{answer['usage']['total_tokens']}" in facts


def test_the_sample_needs_no_typing_and_puts_the_answer_first(page: Page) -> None:
    page.rerank()
    assert page.ranking()[0] == 3
    assert page.ranking() != sorted(page.ranking())
    assert not page.one("#stale").is_displayed()
    page.one("#query").send_keys("?")
    assert page.one("#stale").is_displayed()


def test_everything_is_done_with_the_keyboard(page: Page) -> None:
    page.press(Keys.TAB)
    assert page.focused().text == "Skip to the playground"
    page.press(Keys.ENTER, Keys.TAB)
    assert page.focused().get_attribute("id") == "query"
    page.press_with_control("a")
    page.press("capital of bavaria")
    assert page.focused().get_property("value") == "capital of bavaria"
    page.press_with_control(Keys.ENTER)
    page.wait_for(page.ranking)
    page.settle()
    assert page.ranking()[0] == 2
    page.press(Keys.TAB, Keys.TAB)
    assert page.focused().get_attribute("aria-label") == "Remove passage 1"
    page.press(Keys.ENTER)
    assert page.focused().get_attribute("aria-label") == "Passage 1"
    assert len(page.all("#passages li")) == 4
    visited = []
    while page.focused().get_attribute("id") != "rerank":
        page.press(Keys.TAB)
        visited.append(page.focused().get_attribute("aria-label") or page.focused().text)
        assert len(visited) < 20, visited
    assert visited[-3:] == ["Add passage", "Add a list", "Rerank"]
    assert visited[:3] == ["Remove passage 1", "Passage 2", "Remove passage 2"]
    page.press(Keys.ENTER)
    page.settle()
    page.wait_for(lambda: len(page.ranking()) == 4)
    assert page.ranking()[0] == 1


def test_passages_are_added_one_by_one_or_as_a_list(page: Page) -> None:
    page.fill("q", [])
    page.one("#add").click()
    assert page.focused().get_attribute("aria-label") == "Passage 1"
    page.focused().send_keys("first")
    page.one("#many").click()
    assert page.focused().get_attribute("id") == "many-text"
    page.focused().send_keys("second\n\n  \nthird")
    page.one("#many-add").click()
    assert [field.get_property("value") for field in page.all("#passages textarea")] == ["first", "second", "third"]
    assert page.text("#count") == "3"


def test_errors_are_shown_as_the_server_words_them_at_the_field_at_fault(page: Page, server: RunningServer) -> None:
    page.rerank()
    page.fill("  ", ["a"])
    page.rerank()
    refused = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "  ", "documents": ["a"]}).json()["error"]
    assert page.text("#error p") == refused["message"]
    assert f"param {refused['param']}" in page.text("#error .facts")
    assert page.one("#error").get_attribute("role") == "alert"
    assert page.focused().get_attribute("id") == "query"
    assert page.focused().get_attribute("aria-invalid") == "true"
    assert not page.one("#ranking").is_displayed()
    page.fill("q", [])
    page.rerank()
    assert "empty list" in page.text("#error p")
    page.fill("q", ["a"])
    page.rerank()
    assert not page.one("#error").is_displayed()
    assert not page.all("[aria-invalid]")
    assert page.ranking() == [0]


def test_a_server_that_is_gone_is_said_to_be(browser: webdriver.Chrome) -> None:
    with running_server() as server:
        page = Page(browser, server.base_url)
        page.rerank()
        server.process.terminate()
        server.process.wait(30)
        page.rerank()
        assert f"The server at {server.base_url}/v1/rerank did not answer" in page.text("#error p")
        page.wait_for(lambda: page.text("#status") == "Not reachable")
        page.console()


def test_what_was_cut_off_is_said(page: Page) -> None:
    page.fill("how many people live in berlin", ["word " * 600, "Berlin has museums."])
    page.rerank()
    assert page.texts("#list .cut") == ["too long for the model: only a part was read"]
    assert page.all('#list > [data-index="0"] .cut')
    page.fill("word " * 600, ["a"])
    page.rerank()
    assert "The query is too long" in page.text("#summary")


def test_text_stays_text(page: Page) -> None:
    page.requested()
    page.fill(HOSTILE, [HOSTILE, "harmless"])
    page.rerank()
    assert HOSTILE in page.texts("#list .text")
    assert not page.all("img, main script")
    assert page.browser.title == "crossrank"
    assert page.requested() == [f"{page.url}/v1/rerank"]
    assert page.console() == []
    # Had the page's own code tried, the browser would have refused.
    refused = page.run("try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name }")
    assert refused == "TypeError"
    page.console()


def test_the_snippets_work_when_pasted(page: Page, tmp_path: Path) -> None:
    page.fill(AWKWARD_QUERY, AWKWARD_PASSAGES)
    page.rerank()
    wanted = httpx.post(f"{page.url}/v1/rerank", json={"query": AWKWARD_QUERY, "documents": AWKWARD_PASSAGES}).json()
    for shell in ("sh", "bash"):
        got = json.loads(run_pasted([shell, "-s"], page.text("#curl") + "\n", tmp_path))
        assert (got["results"], got["usage"]) == (wanted["results"], wanted["usage"])
    printed = run_pasted([sys.executable, "-"], page.text("#python"), tmp_path, PYTHONIOENCODING="utf-8")
    assert printed == "".join(
        f"{result['index']} {result['relevance_score']:.4f} {AWKWARD_PASSAGES[result['index']]}\n"
        for result in wanted["results"]
    )
    assert list(tmp_path.iterdir()) == []
    # What a terminal would act on is not in them.
    assert not set("\x07\x1b\x7f\u202e\u2028") & set(page.text("#curl") + page.text("#python"))


def test_copying_gives_the_whole_snippet(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.url},
    )
    for kind in ("curl", "python"):
        page.one(f"[data-copy={kind}]").click()
        page.wait_for(lambda kind=kind: page.text(f"[data-copy={kind}]") == "Copied")
        pasted = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")  # type: ignore[no-untyped-call]
        assert pasted == page.text(f"#{kind}")


def test_nothing_comes_from_elsewhere_and_the_console_stays_empty(page: Page) -> None:
    page.rerank()
    asked = page.requested()
    assert f"{page.url}/page/page.js" in asked
    assert [address for address in asked if not address.startswith(f"{page.url}/")] == []
    assert page.console() == []


def test_a_model_is_chosen_when_several_are_served(browser: webdriver.Chrome, tmp_path: Path) -> None:
    bundle = tmp_path / "second"
    shutil.copytree(ROOT / "server" / "crossrank" / "bundles" / "builtin", bundle)
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{BUILTIN.model_id}"', f'"{SECOND_MODEL}"'))
    with running_server("--model", "builtin", "--model", str(bundle)) as server:
        page = Page(browser, server.base_url)
        known = catalog_model(SECOND_MODEL)
        assert known is not None
        assert known.mrr_at_10 is not None
        second = page.texts(".card")[1]
        assert SECOND_MODEL in second.replace("\n", "")
        for figure in (f"{known.ndcg_at_10:.2f}", f"{known.mrr_at_10:.2f}", f"{known.docs_per_s_v100:,}"):
            assert figure in second
        page.one("#model").send_keys(SECOND_MODEL)
        page.rerank()
        assert SECOND_MODEL in page.text("#facts")
        assert f'"model": "{SECOND_MODEL}"' in page.text("#curl")
        assert json.loads(run_pasted(["sh", "-s"], page.text("#curl") + "\n", tmp_path))["model"] == SECOND_MODEL


def test_dark_and_light_follow_the_system(page: Page) -> None:
    colours = []
    for dark in (False, True):
        page.emulate(dark=dark)
        colours.append(
            [
                page.one(tag).value_of_css_property(name)
                for tag, name in (("body", "background-color"), ("body", "color"))
            ]
        )
    (light_ground, light_ink), (dark_ground, dark_ink) = (
        [sum(map(int, c[5:-1].split(",")[:3])) for c in pair] for pair in colours
    )
    assert light_ground > light_ink
    assert dark_ground < dark_ink


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_scrolls_sideways_at_any_width(page: Page, width: int) -> None:
    page.emulate(width=width)
    page.fill("unbreakable" * 40, ["unbreakable" * 40, "b"])
    for _ in ("ranked", "refused"):
        page.rerank()
        assert page.run("return document.documentElement.scrollWidth") <= width
        outside = page.run(
            "return [...document.querySelectorAll('main *:not(pre, pre *, svg *, .visually-hidden)')]"
            ".filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 0.5)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []
        page.fill("", ["b"])


def test_who_wants_no_motion_gets_none(page: Page) -> None:
    durations = []
    for wish in ("no-preference", "reduce"):
        page.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": wish}]}
        )
        durations.append(
            page.run(
                "return [...document.querySelectorAll('*')].map(e => getComputedStyle(e))"
                ".filter(s => s.transitionDuration !== '0s' || s.animationName !== 'none').length"
            )
        )
    assert durations == [1, 0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_fault_in_any_state(page: Page, dark: bool) -> None:
    def check(state: str) -> None:
        result = Axe().run(page.browser)
        assert len(result["passes"]) > 20, state
        faults = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in result["violations"]]
        assert faults == [], state

    page.emulate(dark=dark)
    check("first")
    page.rerank()
    check("ranked")
    page.one("#many").click()
    page.fill("", ["a"])
    page.rerank()
    check("refused")
    page.emulate(width=320, dark=dark)
    check("narrow")


def test_a_key_is_asked_for_when_the_server_wants_one_and_kept_in_this_tab_only(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    create = [CROSSRANK, "keys", "create", "--name", "page", "--store", store]
    right = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
    wrong = f"{right[:-1]}{'A' if right[-1] != 'A' else 'B'}"
    folder = tmp_path / "pasted"
    folder.mkdir()
    prices = "builtin=0.0205/0.000001"
    with running_server("--store", store, "--prices", prices) as server:
        url = server.base_url
        page = Page(browser, url)
        figures = page.texts(".figures dd")
        assert figures[4:6] == ["0.0205", "0.000001"]
        assert "Price: set by this server's operator." in page.text("#notes")
        assert page.text(".card h3") == BUILTIN.model_id
        assert not page.one("#key").is_displayed()
        page.rerank()
        refused = httpx.post(f"{url}/v1/rerank", json={}).json()["error"]
        assert page.text("#error p") == refused["message"]
        assert "401" in page.text("#error .facts")
        assert page.focused().get_attribute("id") == "key"
        page.press(wrong, Keys.ENTER)
        page.wait_for(lambda: page.text("#error p") != refused["message"])
        assert "invalid_api_key" in page.text("#error .facts")
        page.settle()
        page.press_with_control("a")
        page.press(right, Keys.ENTER)
        page.wait_for(page.ranking)
        assert not page.one("#error").is_displayed()
        # The key itself is in no snippet: those end in shell histories and chats.
        assert right not in page.text("#curl") + page.text("#python")
        for command, code in ((["sh", "-s"], page.text("#curl") + "\n"), ([sys.executable, "-"], page.text("#python"))):
            assert run_pasted(command, code, folder, CROSSRANK_API_KEY=right).strip()
        stores = "return [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]"
        session, local, cookie = page.run(stores)
        assert right in session
        assert (local, cookie) == ("{}", "")
        again = Page(browser, url)
        again.rerank()
        assert again.ranking()
        again.run("sessionStorage.clear()")


def test_times_measured_in_the_server_stand_beside_the_browsers(browser: webdriver.Chrome) -> None:
    with running_server() as server:
        page = Page(browser, server.base_url)
        page.run(
            "const ask = fetch; window.fetch = async (...given) => { const got = await ask(...given);"
            "window.timing = got.headers.get('server-timing') ?? window.timing; return got }"
        )
        server.process.send_signal(signal.SIGSTOP)
        page.one("#rerank").click()
        page.wait_for(lambda: page.text("#summary") == "Waiting for the server.")
        server.process.send_signal(signal.SIGCONT)
        page.settle()
        facts = dict(zip(page.texts("#facts dt"), page.texts("#facts dd"), strict=True))
        sent = dict(part.split(";dur=") for part in page.run("return window.timing").split(", "))
    sent["In the server"] = sent.pop("total")
    assert {"tokenize", "queue", "inference"} < set(sent)
    for name, milliseconds in sent.items():
        shown, unit = facts[name].split(" ")
        assert unit == "ms"
        # Shown in tenths below 10 ms, else whole.
        assert float(shown) == pytest.approx(float(milliseconds), abs=0.051 if float(milliseconds) < 9.95 else 0.51)
    assert facts["In the browser"].endswith(" ms")
