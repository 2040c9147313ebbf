"""Twenty minutes of everything at once: what may grow with time must not."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quaver.app.engine_duplex import EngineBackend
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import DuplexParts
from quaver.dialogue.session import DuplexSettings
from quaver.tts.synthesizer import Synthesizer

from ...dialogue.tiny import CODEC, VOCABULARY, talking_model
from .conftest import Running, serving, wait_for
from .storms import SPEECH, TEXT, microphone, storm

MINUTES = float(os.environ.get("QUAVER_SOAK_MINUTES", "20"))
ROUND = 30.0  # seconds of load between two samples
CLIENTS = ("(recv_events)", "(keepalive)")  # threads of the test's own clients, which outlive a killed socket a while
WARM = 0.25  # share of the samples that are left out: caches and the allocator's pools fill
# What one minute may add. Memory: the allocator's pools wander by more than that within a minute, not over many.
MOST = {"memory MiB": 0.5, "descriptors": 0.1, "threads": 0.05, "tasks": 0.05, "taken slots": 0.01, "sessions": 0.01}


def sample(running: Running) -> list[float]:
    """The figures of MOST, when the load is over and everything has settled."""
    import psutil

    app, loop = running.app, running.server._loop
    assert loop is not None
    assert running.settled(240), running.engine.stats()
    assert wait_for(lambda: len(app.state.resume) == 0, 240)
    assert wait_for(lambda: app.state.gate.connections == 0, 240)
    assert wait_for(lambda: not any(t.name.endswith(CLIENTS) for t in threading.enumerate()), 60)
    gc.collect()

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    counted = asyncio.run_coroutine_threadsafe(tasks(), loop).result(240)
    process, slots = psutil.Process(), app.state.settings.slots * len(running.engine.stats().slots)
    return [
        process.memory_info().rss / 2**20,
        process.num_fds(),
        threading.active_count(),
        counted,
        slots - running.free(),
        sum(app.state.service.access.sessions.values()),
    ]


class _Malloc(ctypes.Structure):
    _fields_ = tuple((f"f{i}", ctypes.c_size_t) for i in range(10))  # struct mallinfo2


def held() -> dict[str, float]:
    """What is in use, apart from what the allocators keep for later: it tells a leak from their pools."""
    found = {"python blocks": float(sys.getallocatedblocks()), "objects": float(len(gc.get_objects()))}
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _Malloc
        info = libc.mallinfo2()
        found |= {"malloc in use MiB": (info.f7 + info.f4) / 2**20, "malloc free MiB": info.f8 / 2**20}
    return found


def loaded(running: Running, number: int) -> None:
    """One round: four clients that misbehave, and one whose every request has to be answered."""
    end = time.monotonic() + ROUND

    def bad(seed: int) -> None:
        while time.monotonic() < end:
            storm(running, 1, seed := seed + 1, (microphone, microphone), pause=0.2)

    threads = [threading.Thread(target=bad, args=(1_000_000 * i + 1_000 * number,)) for i in range(4)]
    for thread in threads:
        thread.start()
    chance = random.Random(number)
    with running.http(timeout=300) as http:
        while time.monotonic() < end:
            form = chance.choice(["pcm", "mp3", "opus", "flac", "wav", "aac"])
            answer = http.post(SPEECH, json={"input": TEXT, "response_format": form, "seed": chance.randrange(99)})
            assert answer.status_code == 200, answer.text
            time.sleep(0.3)
    for thread in threads:
        thread.join()


@pytest.mark.long
@pytest.mark.timeout(60 * (MINUTES + 10))
def test_twenty_minutes_of_load_leave_nothing_behind(
    synthesizer: Synthesizer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    backend = EngineBackend("talk", DuplexParts(talking_model(), codec, VOCABULARY, DuplexSettings(text_top_k=0)))
    limits = {"requests_per_minute": 1_000_000, "grace_seconds": 0.5, "queue_seconds": 60, "sessions_per_key": 1000}
    figures: list[list[float]] = []
    inside: list[dict[str, float]] = []
    with serving(
        synthesizer, tmp_path, limits=limits, slots=4, waiting=32, duplex={"talk": backend}, log_level="error"
    ) as running:
        begun, times = time.monotonic(), []
        while time.monotonic() - begun < 60 * MINUTES:
            loaded(running, len(figures))
            figures.append(sample(running))
            times.append((time.monotonic() - begun) / 60)
            inside.append(held())
            with (tmp_path / "samples.txt").open("a") as log:
                log.write(f"{times[-1]:.2f} {figures[-1]} {inside[-1]}\n")
        stats = running.engine.stats()
    late = round(WARM * len(figures))
    slopes = np.polyfit(np.array(times[late:]), np.array(figures[late:]), 1)[0]
    table = {name: (figures[late][i], figures[-1][i], float(slopes[i])) for i, name in enumerate(MOST)}
    record_property("soak", table)
    record_property("in use", {name: (inside[late][name], inside[-1][name]) for name in inside[late]})
    record_property("closes", stats.closes)
    record_property("samples", len(figures))
    (tmp_path / "soak.txt").write_text(f"{table}\n{stats.closes}\n{figures}\n")
    assert sum(stats.closes.values()) > 10 * len(figures)
    for name, (_, _, slope) in table.items():
        assert slope <= MOST[name], (name, table, figures)
