"""The command as a process: what it imports, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from quaver.app.cli import app
from quaver.benchmarks.__main__ import parser

from .conftest import Run, assert_one_line

ROOT = Path(__file__).parents[2]
CODE = "from quaver.app.cli import main; main()"


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, check=False, timeout=300, **options
    )


@pytest.mark.parametrize("command", [[], ["say"], ["codec", "encode"], ["corpus"], ["eval"], ["train"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from quaver.app.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: sys.stderr.write(' '.join(m for m in sys.modules if '.' not in m))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert b"Usage:" in result.stdout
    loaded = set(result.stderr.decode().split())
    assert not loaded & {"torch", "torchaudio", "transformers", "librosa", "numpy", "soundfile", "lhotse", "hibari"}


def test_version_and_usage_errors(run: Run) -> None:
    assert run("--version").out.startswith(b"quaver ")
    assert_one_line(run("sing"), "No such command 'sing'", "quaver --help")
    assert_one_line(run("say", "--loud", "x"), "--loud", "quaver say --help")
    assert_one_line(run("codec", "decode"), "quaver codec decode --help")


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    plain = process("codec", "info", "none.qvr")
    assert plain.returncode == 2
    assert plain.stderr.count(b"\n") == 1
    for arguments in (["--debug", "codec", "info", "none.qvr"], ["codec", "info", "none.qvr", "--debug"]):
        result = process(*arguments)
        assert result.returncode == 1
        assert b"Traceback" in result.stderr
        assert b"MissingFile" in result.stderr


def test_debug_after_two_dashes_is_text(run: Run) -> None:
    assert_one_line(run("codec", "info", "--", "--debug"), "--debug")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path, tiny_codec: Path) -> None:
    _encode_silence(tmp_path, tiny_codec)
    script = f'"{sys.executable}" -c "{CODE}" codec decode a.qvr - --quiet --codec "{tiny_codec}" | head -c 1'
    result = subprocess.run(["bash", "-c", script], capture_output=True, check=False, timeout=300, cwd=tmp_path)
    assert (result.stdout, result.stderr) == (b"R", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_no_partial_file(tmp_path: Path, tiny_codec: Path, number: signal.Signals) -> None:
    """A decoder that waits for the rest of its input is stopped: the old file stays, nothing lies beside it."""
    _encode_silence(tmp_path, tiny_codec)
    (tmp_path / "b.wav").write_bytes(b"old")
    command = [sys.executable, "-c", CODE, "codec", "decode", "-", "b.wav", "--codec", str(tiny_codec)]
    # A test run that was put into the background ignores SIGINT, and a child inherits that: hand it the default back.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:  # fmt: skip
        assert child.stdin
        assert child.stderr
        child.stdin.write((tmp_path / "a.qvr").read_bytes()[:-100])
        child.stdin.flush()
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob(".b.wav.*.part")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.glob(".b.wav.*.part"))
        os.kill(child.pid, number)
        assert child.wait(120) == 130
        assert child.stderr.read() == b""
    assert (tmp_path / "b.wav").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.qvr", "a.wav", "b.wav"]


def _encode_silence(folder: Path, codec: Path) -> None:
    soundfile.write(folder / "a.wav", np.zeros(240_000), 24000)
    assert process("codec", "encode", "a.wav", "a.qvr", "--codec", str(codec), cwd=folder).returncode == 0


def test_every_command_in_the_documentation_exists_with_its_options() -> None:
    import typer.main

    root: Any = typer.main.get_command(app)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [
        (p.name, line) for p in pages for line in re.findall(r"(?:^|\| |`)(quaver [a-z][^`|#\n]*)", p.read_text(), re.M)
    ]
    found = 0
    for page, line in lines:
        command, words = root, re.findall(r"[^\s\"']+", line)[1:]
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if command is root:
            continue  # prose
        found += 1
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        if command.name == "bench":  # its options are the suite's own
            known |= set(re.findall(r"--[a-z-]+", parser().format_help()))
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", re.sub(r"\"[^\"]*\"", "", line)):
            assert option in known | {"--help", "--debug"}, f"{page}: {line}: {option}"
    assert found > 10
