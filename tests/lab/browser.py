"""The system's Chromium, without a screen and without calls home."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_FLAGS = (
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with an empty profile; skip the test where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = [f"--{flag}" for flag in _FLAGS]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()
