"""A command line in this process, a tiny codec with random weights, and a voice of sine tones."""

from __future__ import annotations

import io
import json
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from quaver.app.cli import main
from quaver.errors import BadInput


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """`run("codec", "info", path, stdin=b"...")` in an empty folder; no command may leave a `.part` file there."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        captured = capfdbinary.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err.decode())

    yield call
    signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.rglob("*.part"))


def assert_one_line(result: Result, *words: str) -> None:
    """The law for bad input: exit code 2, one clear line, nothing on stdout."""
    assert result.code == 2, result
    assert result.out == b""
    assert result.err.startswith("quaver: error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real codec class with few, random weights, saved as `load_codec` wants it: noise, exactly streamed."""
    import torch
    from safetensors.torch import save_file

    from quaver.codecs.native import XCodec, XCodecConfig

    sizes: dict[str, Any] = {
        "width": 32,
        "hidden": 48,
        "encoder_blocks": (1, 1),
        "decoder_blocks": (1, 1),
        "dim": 16,
        "codebooks": 4,
        "vocab": 100,
        "semantic": "none",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = XCodec(XCodecConfig(**sizes))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_file(codec.state_dict(), str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"kind": "codec", **sizes}))
    return folder


@dataclass
class Span:
    text: str
    start: float
    end: float


@dataclass
class Chunk:
    samples: np.ndarray
    sample_rate: int = 24000
    words: list[Span] = field(default_factory=list)
    phones: list[Span] = field(default_factory=list)
    progress: float = 0.0


class Tones:
    """The Synthesizer's interface: 0.1 s of tone for each word; "crash" fails, "nan" is no number."""

    sample_rate = 24000
    timed = True
    voices = ("high", "low")
    calls: ClassVar[list[dict[str, Any]]] = []

    @classmethod
    def load(cls, name_or_path: str = "default") -> Tones:
        return cls()

    def stream(self, text: str | Iterable[str], **options: Any) -> Iterator[Chunk]:
        self.calls.append(options)
        words = (text if isinstance(text, str) else "".join(text)).split()
        if not words:
            raise BadInput("the text is empty")
        for number, word in enumerate(words):
            if word == "crash":
                raise BadInput("crash is not a word")
            if word == "interrupt":
                raise KeyboardInterrupt
            samples = 0.5 * np.sin(np.arange(2400) * 0.1).astype(np.float32)
            if word == "nan":
                samples[7] = np.nan
            span = Span(word, number * 0.1, number * 0.1 + 0.1)
            yield Chunk(samples, words=[span], phones=[span], progress=(number + 1) / len(words))


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> type[Tones]:
    """`quaver say` with the voice of tones: what is tested is the command, not a model."""
    module = types.ModuleType("quaver.tts.synthesizer")
    module.load_synthesizer = Tones.load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quaver.tts.synthesizer", module)
    Tones.calls.clear()
    return Tones
