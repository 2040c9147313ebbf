"""`quaver voice`: voice files out of recordings. `quaver convert`: a recording in another voice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import BadInput
from ..files import STDIO, check_readable, check_writable

if TYPE_CHECKING:
    import numpy as np

    from ...tts.flow_sound import FlowSound
    from ...tts.voices import Voice

app = typer.Typer(help="Make and look at voice files, which `say --voice` and `convert --voice` take.")

DEFAULT = "cosyvoice-flow"
MODEL = Annotated[str, typer.Option("--model", help="A flow, or a token model that has one; by name or folder.")]
VOCODER = Annotated[str | None, typer.Option("--vocoder", help="A vocoder instead of the model's own.")]
THREADS = Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")]


@app.command("create")
def create(
    reference: Annotated[str, typer.Argument(help='Speech of one person, 1 s to 10 min; "-" reads standard input.')],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Voice file; by default NAME.voice.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="What is said in it, or a .txt file with that; makes it closer.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name in messages; by default that of the file.")] = None,
    model: MODEL = DEFAULT,
    vocoder: VOCODER = None,
    threads: THREADS = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the terminal.")] = False,
) -> None:
    """Make a voice file of a recording. Any rate and channels; of more than 10 s, the 10 s with the most speech."""
    from ...tts.voices import SUFFIX, dump_voice
    from ..files import replacing

    stem = "voice" if reference == STDIO else Path(reference).stem
    output = output or Path(stem + SUFFIX)
    if output.suffix != SUFFIX:
        raise BadInput(f"{output}: voice files end in {SUFFIX}")
    check_writable(output)
    said = transcript_of(text)
    _check_length(reference)
    sound = _sound(model, vocoder, threads)
    voice = sound.describe(mono(reference, sound.sample_rate), name=name or output.stem, text=said)
    with replacing(output) as file:
        file.write(dump_voice(voice))
    if not quiet:
        typer.echo(str(output))
        typer.echo(_summary(voice, sound), err=True)


@app.command("show")
def show(path: Annotated[Path, typer.Argument(help="A voice file.")]) -> None:
    """Say what is in a voice file."""
    from ...tts.voices import load_voice

    voice = load_voice(path)
    typer.echo(f"name: {voice.name}")
    typer.echo(f"tokens: {voice.tokens.shape[1]} of {voice.codec or 'an unknown tokenizer'}")
    typer.echo(f"speaker vector: {'none' if voice.vector is None else len(voice.vector)}")
    typer.echo(f"transcript: {voice.text or 'none'}")
    typer.echo(f"flow: {voice.flow or 'not recorded'}")


def convert(
    source: Annotated[str, typer.Argument(help='The recording to convert; "-" reads standard input.')],
    voice: Annotated[str, typer.Option("--voice", help="A voice file, or a name that the flow knows.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help='Audio file, or "-" for stdout.')] = None,
    model: MODEL = DEFAULT,
    vocoder: VOCODER = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same audio.")] = 0,
    threads: THREADS = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the terminal.")] = False,
) -> None:
    """Say what a recording says, as it says it, in another voice."""
    from ...tts.voices import SUFFIX, load_voice
    from ..audio import AudioWriter, check_format

    if output is None:
        stem = "speech" if source == STDIO else Path(source).stem
        output = f"{stem}-{Path(voice).stem}.wav"
    if output != STDIO:
        check_format(output)
        check_writable(output)
    wanted = load_voice(voice) if voice.endswith(SUFFIX) else voice
    sound = _sound(model, vocoder, threads)
    started = time.perf_counter()
    pieces = sound.convert(mono(source, sound.sample_rate), wanted, seed=seed)
    with AudioWriter(output, sound.sample_rate) as writer:
        for piece in pieces:
            writer.write(piece)
    if not quiet:
        seconds, spent = writer.samples / sound.sample_rate, time.perf_counter() - started
        if output != STDIO:
            typer.echo(output)
        typer.echo(
            f"{seconds:.2f} s of speech in {spent:.2f} s ({seconds / max(spent, 1e-9):.1f} times real time)", err=True
        )


def _sound(model: str, vocoder: str | None, threads: int) -> FlowSound:
    from ...tts.flow_sound import load_sound
    from ..runtime import use_threads

    use_threads(threads)
    return load_sound(model, vocoder)


def mono(source: str, sample_rate: int) -> np.ndarray:
    """float32 `[n]`: all channels mixed, resampled."""
    from ..audio import read_audio

    return read_audio(source, sample_rate)[0].mean(0)


def _check_length(reference: str) -> None:
    """Refuses hours of audio before they are read."""
    from ...tts.voices import LONGEST
    from ..audio import open_audio

    if reference == STDIO:
        return
    with open_audio(reference) as audio:
        if audio.frames is not None and audio.frames / audio.sample_rate > LONGEST:
            seconds = audio.frames / audio.sample_rate
            raise BadInput(f"{reference} lasts {seconds:.0f} s; at most {LONGEST:g} s are taken, and 10 s are enough")


def transcript_of(text: str | None) -> str:
    """The words of `--text`, or of the .txt file that it names.

    Raises:
        BadInput: none, or not UTF-8.
    """
    if text is None:
        return ""
    if text.endswith(".txt"):
        path = check_readable(text, "transcript")
        try:
            text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    text = " ".join(text.split())
    if not text:
        raise BadInput("the transcript is empty; give what is said")
    return text


def _summary(voice: Voice, sound: FlowSound) -> str:
    seconds = voice.tokens.shape[1] * sound.tokenizer.frame_size / sound.sample_rate
    return (
        f"{seconds:.1f} s of speech, {'a' if voice.vector is not None else 'no'} speaker vector, "
        f"{'with' if voice.text else 'no'} transcript"
    )
