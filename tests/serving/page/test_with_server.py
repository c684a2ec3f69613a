"""The page and the real server understand each other."""

from __future__ import annotations

import threading

import pytest
from engines import ask
from page_browser import opened

from rmas_jax.serving.openai.server import Server, address_of, bind
from rmas_jax.serving.openai.service import Service
from rmas_jax.serving.openai.settings import ServiceSettings

QUESTION = "where does the parcel end ?"


@pytest.fixture(scope="module")
def address(engine):
    service = Service(engine, ServiceSettings(model="tiny"))
    with bind("127.0.0.1", 0) as bound:
        server = Server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield address_of(bound)
        server.should_exit = True
        thread.join()


@pytest.mark.slow  # compiles an engine
def test_what_the_page_shows_is_what_the_engine_answers(browser, engine, address):
    page = opened(browser, address)
    assert page.texts("h1") == ["tiny"]
    order = engine.team.system.topology.order
    assert tuple(page.states()) == order
    page.one("#compare").click()
    for run in (1, 2):
        page.set("rounds", 2, run=run)
        page.set("temperature", 0, run=run)
    page.ask(QUESTION)
    page.until(lambda: not page.one("#stop").is_enabled())
    assert page.texts(".run [role=alert]") == ["", ""]
    latent, text = (
        ask(
            engine, QUESTION, channel=channel, rounds=2, temperature=0.0, is_watched=True, nearest=3
        )
        for channel in ("latent", "text")
    )
    assert page.texts(".answer") == [latent.texts[0].strip(), text.texts[0].strip()]
    for run, told in ((1, latent), (2, text)):
        stages = [
            stage.get_attribute("data-stage") for stage in page.all(f".run:nth-child({run}) .stage")
        ]
        assert stages == [stage.role for stage in told.stages] == [*order, *order[:-1]]
    crossings = [crossing for stage in latent.stages for crossing in stage.sent.values()]
    labels = [cell.get_attribute("aria-label") for cell in page.all(".run:nth-child(1) .cell")]
    assert len(labels) == sum(len(crossing.norms) for crossing in crossings) > 0
    norms = [f"norm {norm:.2f}" for crossing in crossings for norm in crossing.norms]
    assert all(norm in label for norm, label in zip(norms, labels, strict=True))
    assert [message.strip() for message in page.texts(".message")] == [
        stage.text.strip() for stage in text.stages
    ]
