"""A real headless Chromium, and the page of a server open in it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_WAIT_S = 20


@contextlib.contextmanager
def running_browser(*flags: str) -> Iterator[webdriver.Chrome]:
    """Run Chromium with an empty profile until the block ends; without one the test is skipped.

    Args:
        flags: Of its command line, beside the usual ones.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="crossrank-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            yield browser
        finally:
            browser.quit()


class Page:
    """The page of the server at `url`, opened anew.

    The page replaces elements whenever an answer or a new state comes. What may be replaced is read by one script, which
    the page cannot come between; an element held across two calls may be gone at the second.
    """

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self.url = url
        self.console()
        self.requested()
        browser.get(f"{url}/")
        self.wait_for(lambda: self.all("#cards .card"))

    def wait_for(self, condition: Any) -> Any:
        """Return what the condition gives as soon as it is true; an element replaced meanwhile is looked for again."""
        replaced = [StaleElementReferenceException]
        return WebDriverWait(self.browser, _WAIT_S, 0.05, replaced).until(lambda _: condition())

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text as it is in the document, seen or not."""
        text = self.run("return document.querySelector(arguments[0])?.textContent", selector)
        if text is None:
            raise NoSuchElementException(selector)
        return str(text)

    def texts(self, selector: str) -> list[str]:
        """The texts of all such elements as they are seen; of one that is not seen, nothing."""
        seen = "e.checkVisibility({visibilityProperty: true}) ? e.innerText.trim() : ''"
        texts: list[str] = self.run(f"return [...document.querySelectorAll(arguments[0])].map(e => {seen})", selector)
        return texts

    def run(self, script: str, *args: Any) -> Any:
        return self.browser.execute_script(script, *args)  # type: ignore[no-untyped-call]

    def focused(self) -> WebElement:
        return self.browser.switch_to.active_element

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def press_with_control(self, key: str) -> None:
        webdriver.ActionChains(self.browser).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def fill(self, query: str, passages: list[str]) -> None:
        """Put texts of any characters into the fields, as a paste does."""
        for button in self.all("#passages .remove"):
            button.click()
        for _ in passages:
            self.one("#add").click()
        for field, text in zip([self.one("#query"), *self.all("#passages textarea")], [query, *passages], strict=True):
            self.run(
                "arguments[0].value = arguments[1];"
                "arguments[0].dispatchEvent(new InputEvent('input', {bubbles: true}))",
                field,
                text,
            )

    def rerank(self) -> None:
        """Press Rerank and wait for a ranking or an error."""
        self.one("#rerank").click()
        self.settle()

    def settle(self) -> None:
        self.wait_for(lambda: not self.all("#results[aria-busy]"))

    def ranking(self) -> list[int]:
        """Input positions, from 0, in the order shown."""
        order: list[int] = self.run(
            "return [...document.querySelectorAll('#list > li')].map(item => Number(item.dataset.index ?? -1))"
        )
        return order

    def emulate(self, *, width: int = 1280, dark: bool = False) -> None:
        """Set the width of the window in CSS pixels and the preferred colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def console(self) -> list[str]:
        """What the console got since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]  # type: ignore[no-untyped-call]

    def requested(self) -> list[str]:
        """The addresses that the browser asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]  # type: ignore[no-untyped-call]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def run_pasted(command: list[str], code: str, folder: Path, **env: str) -> str:
    """Run a snippet and return what it printed."""
    import os
    import subprocess

    done = subprocess.run(
        command, input=code, text=True, capture_output=True, cwd=folder, env={**os.environ, **env}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
