"""A browser for each file, and for each test a server that says what the test writes."""

from __future__ import annotations

import pytest
from page_browser import chromium, opened
from scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def server():
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page at the server; in the end, nothing has violated its policy."""
    yield lambda: opened(browser, server.address)
    logged = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
    browser.get("about:blank")  # leaves what still runs
    assert not [message for message in logged if "Failed to load resource" not in message]
