"""A tiny voice, engines that end with their test, and faults to put into them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from quaver.app.engine import Audio, Engine, Event, Outcome, Session, Started
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.tts.synthesizer import Synthesizer, VoiceSettings
from quaver.tts.token_synthesizer import TokenSynthesizer, TokenVoiceSettings

from ..tts.conftest import CODEC, tiny_lm
from ..tts.test_voices import SOUND
from ..tts.tokens import token_lm


def tiny_synthesizer() -> Synthesizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = XCodec(XCodecConfig(**CODEC)).eval()
        lm = tiny_lm()
    return Synthesizer(lm, codec, VoiceSettings(names={"Alice": "high", "Bob": "low"}, default="Alice"))


def drafting(folder: Path) -> TokenSynthesizer:
    """A token voice with a multi-token head, whose weights lie in the folder (for `offer_speculation`)."""
    lm = token_lm("vita")
    config = {"kind": "token_lm", "codec": "tokens", **lm.config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in lm.state_dict().items()}, folder / "model.safetensors")
    return TokenSynthesizer(lm, SOUND, TokenVoiceSettings())


@contextmanager
def running(synthesizer: Synthesizer, **settings: Any) -> Iterator[Engine]:
    """A started engine; when it stops, no thread and no open session may be left."""
    engine = Engine({"tiny": synthesizer}, **{"slots": 3, "warm_up": False, "stuck": 20.0, **settings})
    before = threading.active_count()
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        wait_until(lambda: threading.active_count() <= before)
        assert engine.stats().open == 0
        assert engine.stats().waiting == 0


def wait_until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.002)


def read(session: Session, timeout: float = 90.0) -> list[Event]:
    """All events to the outcome, checked: `Started` first (if a slot was given), one outcome, nothing after it."""
    events: list[Event] = []
    while not events or not isinstance(events[-1], Outcome):
        events.append(session.get(timeout))
    assert session.get(0) is events[-1] is session.outcome
    assert [isinstance(e, Started) for e in events].count(True) <= 1
    return events


def sound(events: list[Event]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(e.samples for e in events if isinstance(e, Audio))])


def all_free(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.open == 0 and all(of["free"] == engine.slots for of in stats.slots.values())


class Fault:
    """Replaces a method so that it raises (or sleeps) at its nth calls from now."""

    def __init__(self, target: Any, name: str, at: set[int], do: Callable[[], object]) -> None:
        self.target, self.name, self.real = target, name, getattr(target, name)
        self.calls = 0

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls in at:
                do()
            return self.real(*arguments, **named)

        setattr(target, name, call)

    def remove(self) -> None:
        delattr(self.target, self.name)  # the method of the class shows again


def raiser(error: BaseException) -> Callable[[], object]:
    def do() -> object:
        raise error

    return do
