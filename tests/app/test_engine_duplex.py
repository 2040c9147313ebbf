"""A duplex model in the engine, and behind Moshi's socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from quaver.app.engine import Audio, Engine, Outcome, Started
from quaver.app.engine_duplex import HUSH, EngineBackend, EngineLink, TalkSession
from quaver.app.server.duplex import DuplexAudio, DuplexBackend, DuplexEnd, DuplexLink, DuplexRequest, DuplexText
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.dialogue.loading import DuplexParts, load_duplex
from quaver.dialogue.session import DuplexSettings
from quaver.errors import BadInput, ConfigError, Draining, MissingFile, Overloaded

from ..dialogue.tiny import CODEC, VOCABULARY, noise_frames, talking_model, tiny_codec
from .server.conftest import receive, serving, synthesizer, wait_for  # noqa: F401

SIZE = 64


@pytest.fixture(scope="module")
def parts() -> DuplexParts:
    return DuplexParts(talking_model(), tiny_codec(), VOCABULARY, DuplexSettings(text_temperature=1.5, text_top_k=0))


@pytest.fixture
def backend(parts: DuplexParts) -> Iterator[EngineBackend]:
    made = EngineBackend("talk", parts)
    engine = Engine({}, lanes={"talk": made.lane(2)}, slots=2)
    made.bind(engine)
    engine.start()
    yield made
    engine.stop()


def heard(link: DuplexLink, frames: int) -> tuple[np.ndarray, str]:
    """What a link gives for so many frames of noise; then it is closed."""

    async def read() -> tuple[np.ndarray, str]:
        samples, text = [], ""
        async for event in link.events():
            if isinstance(event, DuplexAudio):
                samples.append(event.samples)
                if len(samples) == frames:
                    link.close("disconnect")
            elif isinstance(event, DuplexText):
                text += event.text
            elif isinstance(event, DuplexEnd):
                assert event.reason == "disconnect"
        return np.concatenate(samples), text

    return asyncio.run(asyncio.wait_for(read(), 30))


def test_a_link_says_what_a_session_says(backend: EngineBackend, parts: DuplexParts) -> None:
    """However the audio comes in pieces: the same as frame by frame without an engine."""
    assert isinstance(backend, DuplexBackend)
    frames = noise_frames(12, SIZE)
    link = backend.open(DuplexRequest(seed=3))
    for piece in np.split(frames.reshape(-1), [1, 100, 101, 500]):
        assert link.push(piece) == 0
    samples, text = heard(link, 11)  # the neighbour slot never moves
    session = parts.session(parts.settings.model_copy(update={"seed": 3}))
    said = [session.step(f) for f in frames]
    wanted = np.concatenate([f.audio for f in said])[: len(samples)]
    assert np.abs(samples - wanted).max() < 1e-4
    assert text == "".join(f.text for f in said)[: len(text)]


def test_slots_come_free_and_are_not_given_twice(backend: EngineBackend) -> None:
    links = [backend.open(DuplexRequest()) for _ in range(2)]
    assert wait_for(lambda: backend._engine is not None and backend._engine.stats().slots["talk"]["free"] == 0)
    with pytest.raises(Overloaded):
        backend.open(DuplexRequest())
    links[0].close("client")
    assert wait_for(lambda: backend._engine is not None and backend._engine.stats().slots["talk"]["free"] == 1)
    backend.open(DuplexRequest()).close("client")


def test_a_session_whose_audio_ends_is_done(backend: EngineBackend, parts: DuplexParts) -> None:
    engine = backend._engine
    assert engine is not None
    session = TalkSession("talk", 24_000, parts.settings, "", engine.wake)
    session.push_audio(noise_frames(3, SIZE).reshape(-1))
    session.finish_audio()
    engine.accept(session, 5)
    events = list(session)
    assert isinstance(events[0], Started)
    assert sum(isinstance(e, Audio) for e in events) == 3
    assert isinstance(events[-1], Outcome)
    assert events[-1].kind == "done"


def test_an_interruption_silences_the_text_for_a_while(backend: EngineBackend, parts: DuplexParts) -> None:
    """HUSH frames of PAD, whatever was asked before; then it is free again."""
    lane = backend.lane(1)()
    session = TalkSession("talk", 24_000, parts.settings, "", lambda: None)
    lane.join(0, session)
    link = EngineLink(session)
    link.steer("speak")
    link.steer("interrupt")
    session.push_audio(noise_frames(HUSH + 20, SIZE).reshape(-1))
    for _ in range(HUSH + 20):
        assert lane.tick().moved == 1
    spoken = [bool(e.words) for e in session_events(session) if isinstance(e, Audio)]
    assert not any(spoken[:HUSH])
    assert any(spoken[HUSH:])
    assert lane.states() == ["speaking"]
    assert lane.tick().moved == 0
    assert lane.states() == ["waiting"]


def session_events(session: TalkSession) -> list[object]:
    events: list[object] = []
    while (event := session.get_nowait()) is not None:
        events.append(event)
    return events


def test_too_much_audio_drops_the_oldest_and_bad_audio_is_refused(backend: EngineBackend, parts: DuplexParts) -> None:
    session = TalkSession("talk", 1000, parts.settings, "", lambda: None)
    assert session.push_audio(np.zeros(1900, np.float32)) == 0
    assert session.push_audio(np.arange(300, dtype=np.float32)) == 200
    frame, _, _ = session.take_frame(2000)
    assert frame is not None
    assert frame[-1] == 299
    link = backend.open(DuplexRequest())
    with pytest.raises(BadInput, match="finite"):
        link.push(np.array([np.nan], np.float32))
    link.played(0.5)
    link.close("client")
    with pytest.raises(Draining):
        EngineBackend("talk", parts).open(DuplexRequest())


def test_moshis_socket_over_a_real_model(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sphn = pytest.importorskip("sphn")
    torch.manual_seed(0)
    codec = XCodec(XCodecConfig.model_validate({**CODEC, "hop": 240, "n_fft": 960})).eval()
    backend = EngineBackend("talk", DuplexParts(talking_model(), codec, VOCABULARY, DuplexSettings(text_top_k=0)))
    speech = request.getfixturevalue("synthesizer")
    with serving(speech, tmp_path, slots=1, duplex={"talk": backend}) as running, running.ws("/api/chat") as ws:
        assert receive(ws) == b"\0"
        writer, reader, got = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000), 0
        for frame in noise_frames(20, 1920):
            ws.send(b"\x01" + writer.append_pcm(frame))
        while got < 8 * 960:
            message = receive(ws)
            assert message[0] in (1, 2), message
            if message[0] == 1:
                samples = reader.append_bytes(message[1:])
                got += 0 if samples is None else samples.shape[-1]


def test_folders_that_are_no_duplex_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        load_duplex(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="not a duplex model"):
        load_duplex("quaver-24k")
