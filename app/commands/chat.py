"""`quaver chat`: a conversation with a duplex model, from a file or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import BadInput
from ..files import STDIO

if TYPE_CHECKING:
    import numpy as np


def chat(
    source: Annotated[
        str | None, typer.Option("--in", "-i", help='What the user says: an audio file, or "-" for standard input.')
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help='The reply: an audio file, or "-".')] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Bare 16-bit mono samples at the model's rate: stdin -> stdout, at once.")
    ] = False,
    model: Annotated[str, typer.Option("--model", help="Bundled duplex model, or a folder.")] = "quaver-duplex",
    both: Annotated[bool, typer.Option("--both", help="Write two channels: the user, the model.")] = False,
    tail: Annotated[float, typer.Option("--tail", min=0, max=600, help="Seconds to go on listening to silence.")] = 3.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same reply.")] = 0,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=5, help="Of the voice.")] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Show on stderr what the model says.")] = True,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")] = 1,
) -> None:
    """Let a duplex model hear a recording, and write down what it says meanwhile (of a recogniser: what it hears)."""
    if stream and (source or out or both):
        raise BadInput("--stream reads standard input and writes standard output; leave --in, --out and --both out")
    if not stream and not (source and out):
        raise BadInput("name what the user says and where the reply goes: --in user.wav --out reply.wav, or --stream")
    from ...dialogue.loading import load_duplex
    from ..audio import AudioWriter, check_format, open_audio
    from ..runtime import use_threads

    use_threads(threads)
    if out:
        check_format(out)
    parts = load_duplex(model)
    if parts.model.config.mode == "synthesizer":
        raise BadInput(f"{model} speaks what is written for it and hears nothing; see quaver.dialogue.modes.speak")
    changes = {"seed": seed} if temperature is None else {"seed": seed, "temperature": temperature}
    session = parts.session(parts.settings.model_copy(update=changes))
    size, rate = session.frame_size, session.sample_rate
    if stream:
        _converse(session, _pipe(size), AudioWriter(STDIO, rate, raw=True), False, text)
        return
    assert source is not None
    assert out is not None
    with open_audio(source) as audio:
        mono = (block.mean(0) for block in audio.blocks(rate))
        frames = _frames(mono, size, round(tail * rate / size))
        _converse(session, frames, AudioWriter(out, rate, channels=2 if both else 1), both, text)


def _converse(session: Any, frames: Iterator[np.ndarray], writer: Any, both: bool, text: bool) -> None:
    import numpy as np

    with writer:
        for frame in frames:
            said = session.step(frame)
            writer.write(np.stack([frame, said.audio]) if both else said.audio)
            if text and said.text:
                sys.stderr.write(said.text)
                sys.stderr.flush()
    if text:
        sys.stderr.write("\n")


def _frames(blocks: Iterator[np.ndarray], size: int, silent: int) -> Iterator[np.ndarray]:
    """Blocks of any length as frames, the last filled with silence, and `silent` frames of silence after it."""
    import numpy as np

    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block.astype(np.float32)])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield np.pad(held, (0, size - len(held)))
    for _ in range(silent):
        yield np.zeros(size, np.float32)


def _pipe(size: int) -> Iterator[np.ndarray]:
    """Frames of 16-bit samples from standard input as they come; what is left at its end is filled with silence."""
    import numpy as np

    while data := sys.stdin.buffer.read(2 * size):
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
        yield np.pad(samples, (0, size - len(samples)))
