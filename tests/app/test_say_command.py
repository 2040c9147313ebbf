"""`quaver say` with a voice of tones: where text comes from, where audio goes, and what a failure leaves behind."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from quaver.app.audio import read_audio
from quaver.app.commands.say import _whole_characters

from .conftest import Run, Tones, assert_one_line


def test_a_text_becomes_a_file_named_after_it(run: Run, tones: type[Tones], tmp_path: Path) -> None:
    result = run("say", "Hello world.")
    assert result.code == 0
    assert result.out == b"hello-world.wav\n"
    assert "0.20 s of speech" in result.err
    assert "first audio after" in result.err
    audio, rate = read_audio(tmp_path / "hello-world.wav")
    assert (audio.shape, rate) == ((1, 4800), 24000)


def test_every_option_reaches_the_synthesizer(run: Run, tones: type[Tones]) -> None:
    numbers = ["--speed", 1.5, "--pause", 2, "--seed", 7, "--temperature", 0.5, "--codebooks", 3]
    result = run("say", "one", "--voice", "low", *numbers, "-o", "a.flac", "--quiet")
    assert result == (0, b"", "")
    assert tones.calls == [
        {"voice": "low", "speed": 1.5, "pause": 2.0, "seed": 7, "temperature": 0.5, "codebooks": 3},
    ]


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"], []])
def test_standard_input(run: Run, tones: type[Tones], tmp_path: Path, arguments: list[str]) -> None:
    assert run("say", *arguments, stdin=b"one two\nthree \xff\n").code == 0
    assert read_audio(tmp_path / "speech.wav")[0].shape == (1, 4 * 2400)


def test_a_text_file(run: Run, tones: type[Tones], tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("\ufeffone two\nthree")
    assert run("say", "--file", "story.txt").out == b"story.wav\n"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert_one_line(run("say", "--file", "latin.txt"), "not UTF-8", "byte 3")
    assert_one_line(run("say", "--file", "none.txt"), "none.txt")
    assert_one_line(run("say", "text", "--file", "story.txt"), "not both")


@pytest.mark.parametrize("where", [["-o", "-"], ["--stream"], ["--stream", "-o", "-"]])
def test_standard_output_is_a_wav_stream(run: Run, tones: type[Tones], where: list[str]) -> None:
    result = run("say", "one two", *where)
    assert result.out[:4] == b"RIFF"
    assert len(result.out) == 44 + 2 * 4800
    assert run("say", "one two", "--raw", *where).out == result.out[44:]


def test_time_tables(run: Run, tones: type[Tones], tmp_path: Path) -> None:
    assert run("say", "one two", "-t", "a.json", "--timestamps", "a.srt").code == 0
    table = json.loads((tmp_path / "a.json").read_text())
    assert [w["text"] for w in table["words"]] == ["one", "two"]
    assert table["seconds"] == 0.2
    assert (tmp_path / "a.srt").read_text().endswith("one two\n")
    assert_one_line(run("say", "one", "-t", "a.txt"), ".json or .srt")


@pytest.mark.parametrize("text", ["crash", "one two crash three", "one nan two"])
def test_an_error_leaves_the_old_file_and_says_one_line(
    run: Run, tones: type[Tones], tmp_path: Path, text: str
) -> None:
    for name in ("a.wav", "a.json"):
        (tmp_path / name).write_bytes(b"old")
    result = run("say", text, "-o", "a.wav", "-t", "a.json")
    assert_one_line(result)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.wav": b"old", "a.json": b"old"}


def test_an_interrupt_is_quiet_and_leaves_nothing(run: Run, tones: type[Tones], tmp_path: Path) -> None:
    result = run("say", "one two interrupt", "-o", "a.wav")
    assert (result.code, result.out, result.err) == (130, b"", "")
    assert not list(tmp_path.iterdir())


def test_an_error_before_the_first_sample_writes_no_header(run: Run, tones: type[Tones]) -> None:
    assert run("say", "crash", "-o", "-").out == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "-o", "a.wav"], "no text"),
        (["  \n"], "no text"),
        (["-"], "empty"),
        (["x", "--speed", "3"], "--speed"),
        (["x", "--speed", "nan"], "--speed"),
        (["x", "--pause", "-1"], "--pause"),
        (["x", "--temperature", "9"], "--temperature"),
        (["x", "--threads", "0"], "--threads"),
        (["x", "--voice", "nobody"], "high, low"),
        (["x", "-o", "a.doc"], ".flac"),
        (["x", "-o", "no/a.wav"], "does not exist"),
        (["x", "-o", "."], "folder"),
        (["x", "--seed", "many"], "--seed"),
        (["x", "--what"], "--what"),
    ],
)
def test_bad_options_are_one_line(
    run: Run, tones: type[Tones], tmp_path: Path, arguments: list[str], words: str
) -> None:
    assert_one_line(run("say", *arguments), words)
    assert not list(tmp_path.iterdir())


def test_voices(run: Run, tones: type[Tones]) -> None:
    assert run("voices").out == b"high\nlow\n"


def test_stream_to_a_terminal_plays(
    run: Run, tones: type[Tones], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a player program that keeps what it hears."""
    heard = tmp_path / "heard"
    _program(tmp_path / "bin" / "aplay", f'cat > "{heard}"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("say", "one two", "--stream", "-o", "a.wav")
    assert result.code == 0
    pcm = np.frombuffer(heard.read_bytes(), "<i2")
    assert len(pcm) == 4800
    assert np.array_equal(pcm, np.round(read_audio(tmp_path / "a.wav")[0][0] * 32768).astype("<i2"))


def test_a_player_that_fails_is_one_line(
    run: Run, tones: type[Tones], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "bin" / "aplay", "cat > /dev/null; echo no sound card >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    result = run("say", "one two", "--stream", "-o", "a.wav")
    assert_one_line(result, "no sound card", "-o")


def test_no_player_at_all_is_one_line(run: Run, tones: type[Tones], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert_one_line(run("say", "one", "--stream", "-o", "a.wav"), "quaver[play]")


def _program(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_pieces_of_standard_input_hold_whole_characters() -> None:
    text = "naïve – 語 𝄞!"
    data = text.encode()
    for cut in range(len(data) + 1):
        whole = _whole_characters(data[:cut])
        assert data[:whole].decode() == text[: len(data[:whole].decode())]
        assert cut - whole < 4
    assert _whole_characters(data) == len(data)
