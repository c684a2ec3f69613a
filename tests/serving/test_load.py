"""A server under load: 64 clients for five minutes leave no error, no memory and no program."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest
from processes import limit_s
from served import CHAT, QUICKSTART, aligned_links, serving

CLIENTS, SECONDS = 64, 300
GROWTH = 1.005  # of memory, from the second minute on: allocators are not exact
SIZES = ("--rows", "8", "--batch", "4", "--widths", "96,160", "--max-tokens", "16")
SIZES += ("--channels", "latent")
WORDS = ["Fumes", "Dabil", "Kenal", "Bison", "Amor", "Roma", "Lesar", "Torin"]


def body(draw: random.Random) -> dict:
    """A request of one of the kinds that clients send."""
    phrase = " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
    messages = [{"role": "user", "content": f"The pass phrase {phrase} goes through a gate."}]
    rmas = {"rounds": draw.randint(1, 3)}
    if draw.random() < 0.1:
        rmas |= {"watch": True, "nearest": 2}
    return {
        "model": QUICKSTART,
        "messages": messages,
        "stream": draw.random() < 0.5,
        "n": draw.choice([1, 1, 1, 2, 3]),
        "temperature": draw.choice([0.0, 0.7]),
        "max_tokens": draw.randint(1, 16),
        "seed": draw.randint(0, 99),
        "stop": draw.choice([[], ["."], [","]]),
        "rmas": rmas,
    }


def client(url: str, number: int, end: float, results: list) -> None:
    """Asks until the end; notes the status of each request, or what went wrong."""
    draw = random.Random(number)
    with httpx2.Client(base_url=url, timeout=300) as http:
        while time.monotonic() < end:
            asked = body(draw)
            try:
                with http.stream("POST", CHAT, json=asked) as reply:
                    if asked["stream"] and draw.random() < 0.1:
                        next(reply.iter_bytes())  # and goes away
                        results.append("gone")
                        continue
                    text = reply.read().decode()
                if asked["stream"]:
                    assert text.rstrip().endswith("data: [DONE]"), text[-300:]
                else:
                    assert len(json.loads(text)["choices"]) == asked["n"], text[:300]
                results.append(reply.status_code)
                if draw.random() < 0.02:
                    assert http.get("/metrics").status_code == 200
            except Exception as error:
                results.append(repr(error))


def resident_mib(process: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def metric(url: str, name: str) -> float:
    lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.long
def test_64_clients_for_five_minutes(tmp_path):
    links = aligned_links(tmp_path)
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    with serving(*SIZES, "--links", links, cache=cache) as (process, url):
        results, end = [], time.monotonic() + SECONDS
        threads = [
            threading.Thread(target=client, args=(url, i, end, results)) for i in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        sizes = []
        while time.monotonic() < end:
            sizes.append(resident_mib(process.pid))
            time.sleep(1)
        for thread in threads:
            thread.join()
        minutes = [np.median(of) for of in np.array_split(sizes, SECONDS // 60)]
        shown = ", ".join(f"{size:.1f}" for size in minutes)
        print(f"{len(results)} requests; MiB by minute: {shown}")
        assert set(results) <= {200, "gone"}, set(results)
        assert len(results) > CLIENTS
        assert max(minutes[2:]) < minutes[1] * GROWTH  # after a minute of warming up
        assert metric(url, "rmas_compilations_total") == 0
        assert metric(url, "rmas_queued_requests") == metric(url, "rmas_running_rows") == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(limit_s()) == 0
