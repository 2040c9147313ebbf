"""`quaver say`: text in, speech out, as it is made. `quaver voices`: who can speak."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import BadInput, QuaverError
from ..files import STDIO, check_readable, check_writable, slug
from .options import DELTA, DRAFT, DRAFT_LENGTH, SPECULATE

if TYPE_CHECKING:
    from ...tts.synthesizer import AudioChunk

LONG_TEXT = 200  # characters; from here on a progress bar is worth its lines


def say(
    text: Annotated[list[str] | None, typer.Argument(help='What to say; "-" reads standard input.')] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file.")] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help='Audio file (wav, flac, ogg, opus, mp3, raw), or "-" for stdout.'),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Play, or pipe, the audio while it is being made.")] = False,
    timestamps: Annotated[
        list[str] | None, typer.Option("--timestamps", "-t", help="Write word times: .json or .srt; may be repeated.")
    ] = None,
    voice: Annotated[
        str | None, typer.Option("--voice", help="A name that `quaver voices` lists, or a voice file.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Bundled model, or a folder.")] = "default",
    speed: Annotated[float, typer.Option("--speed", help="0.5 (slow) to 2 (fast).")] = 1.0,
    duration: Annotated[
        float | None, typer.Option("--duration", help="Seconds that the speech is to last, instead of --speed.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Length in frames instead of seconds (token models).")
    ] = None,
    pause: Annotated[float, typer.Option("--pause", help="Length of pauses, 0.1 to 5 times the usual.")] = 1.0,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 (always the likeliest) to 2.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="How closely to follow the text, 0 to 10 (some token models).")
    ] = None,
    instruct: Annotated[
        str | None, typer.Option("--instruct", help="How to say it: a style, or words (models trained for it).")
    ] = None,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", help="Decode only the first so many codebooks.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same speech.")] = 0,
    speculate: SPECULATE = "off",
    draft: DRAFT = None,
    draft_length: DRAFT_LENGTH = "3",
    delta: DELTA = 0.1,
    raw: Annotated[bool, typer.Option("--raw", help="Bare 16-bit samples instead of WAV on stdout.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on the terminal.")] = False,
) -> None:
    """Speak a text into a file, a pipe or the loudspeaker."""
    _check_range("--speed", speed, 0.5, 2.0)
    _check_range("--pause", pause, 0.1, 5.0)
    _check_range("--temperature", temperature, 0.0, 2.0)
    _check_range("--guidance", guidance, 0.0, 10.0)
    _check_range("--threads", threads, 1, 256)
    wanted, name = _source(text, file)
    target, play = _target(output, stream, raw, name)
    tables = [_check_table(table) for table in timestamps or []]
    if isinstance(wanted, str) and not wanted.strip():
        raise BadInput("there is no text to say")
    from ...tts.synthesizer import load_synthesizer
    from ..runtime import use_threads
    from ..speculation import Speculating

    use_threads(threads)
    started = time.perf_counter()
    synthesizer = load_synthesizer(model)
    if tables and not synthesizer.timed:
        raise BadInput("this model does not know when its words sound; --timestamps needs a pointer model")
    options: dict[str, Any] = {"voice": _voice(voice, synthesizer)}
    if duration is not None:
        options["duration"] = duration
    if tokens is not None:
        if synthesizer.timed:
            raise BadInput("--tokens needs a token model; this one takes --duration SECONDS")
        options["tokens"] = tokens
    if guidance is not None:
        if synthesizer.timed:
            raise BadInput("--guidance needs a token model that was trained for it (docs/models.md)")
        options["guidance"] = guidance
    if instruct is not None:
        if synthesizer.timed:
            raise BadInput("this model takes no instructions; --instruct needs a token model trained for it")
        options["instruct"] = instruct
    Speculating(rule=speculate, draft=draft, length=draft_length, delta=delta).apply(synthesizer, model)
    if stream:
        options["split"] = "word"  # what listens wants to hear now; a file can wait for whole sentences
    loaded = time.perf_counter()
    chunks = synthesizer.stream(
        wanted, speed=speed, seed=seed, temperature=temperature, pause=pause, codebooks=codebooks, **options
    )
    bar = not quiet and sys.stderr.isatty() and (not isinstance(wanted, str) or len(wanted) >= LONG_TEXT)
    run = _Run(synthesizer.sample_rate, target, play, raw)
    run.consume(_with_progress(chunks) if bar else chunks)
    for table in tables:
        _write_table(table, run)
    if not quiet:
        _report(run, target, loaded - started)


def voices(model: Annotated[str, typer.Option("--model", help="Bundled model, or a folder.")] = "default") -> None:
    """List the voices of a model."""
    from ...tts.synthesizer import load_synthesizer

    for name in load_synthesizer(model).voices:
        typer.echo(name)


class _Run:
    """Takes the chunks to where they belong, and remembers what the report and the time tables need."""

    def __init__(self, sample_rate: int, target: str | None, play: bool, raw: bool) -> None:
        self.sample_rate = sample_rate
        self.words: list[Any] = []
        self.phones: list[Any] = []
        self.samples = 0
        self.first = self.busy = 0.0
        self._target, self._play, self._raw = target, play, raw

    def consume(self, chunks: Iterable[AudioChunk]) -> None:
        from ..audio import AudioWriter
        from ..playback import Player

        with ExitStack() as stack:
            sinks: list[Any] = []
            if self._play:
                sinks.append(stack.enter_context(Player(self.sample_rate)))
            if self._target is not None:
                sinks.append(stack.enter_context(AudioWriter(self._target, self.sample_rate, raw=self._raw)))
            for chunk in self._timed(chunks):
                self.words += chunk.words
                self.phones += chunk.phones
                if not len(chunk.samples):
                    continue
                self.samples += len(chunk.samples)
                for sink in sinks:
                    sink.write(chunk.samples)
            if not self.samples:
                raise QuaverError("the model made no audio for this text; say it in other words")

    def _timed(self, chunks: Iterable[AudioChunk]) -> Iterator[AudioChunk]:
        """Counts the time spent in the model alone: a loudspeaker takes as long as the speech lasts."""
        iterator = iter(chunks)
        while True:
            before = time.perf_counter()
            chunk = next(iterator, None)
            self.busy += time.perf_counter() - before
            if chunk is None:
                return
            if not self.samples and len(chunk.samples):
                self.first = self.busy
            yield chunk

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def _source(words: list[str] | None, file: Path | None) -> tuple[str | Iterable[str], str]:
    """The text (or its pieces as they arrive on standard input) and a name for the file that will hold it."""
    if words and file:
        raise BadInput("give a text or --file, not both")
    if file is not None and str(file) != STDIO:
        return _read_text(check_readable(file, "text file")), file.stem or "speech"
    if words and words != [STDIO]:
        text = " ".join(words)
        return text, slug(text)
    if not words and file is None and sys.stdin.isatty():
        raise BadInput('there is no text to say; give one, or --file FILE, or "-" for standard input')
    return _stdin_pieces(), "speech"


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None


def _stdin_pieces() -> Iterator[str]:
    """Standard input as it arrives, not line by line: a language model writes words."""
    read = getattr(sys.stdin.buffer, "read1", sys.stdin.buffer.read)
    held = b""
    while data := read(4096):
        held += data
        whole = _whole_characters(held)
        yield held[:whole].decode("utf-8", errors="replace")
        held = held[whole:]
    yield held.decode("utf-8", errors="replace")


def _whole_characters(data: bytes) -> int:
    """How many bytes of UTF-8 end with a whole character."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:  # the lead byte of a character of 2, 3 or 4 bytes
            return len(data) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(data)
        if byte < 0x80:
            break
    return len(data)


def _target(output: str | None, stream: bool, raw: bool, name: str) -> tuple[str | None, bool]:
    """Where the audio goes, and whether it is played too."""
    if output is None and (raw or (stream and not sys.stdout.isatty())):
        output = STDIO
    play = stream and output != STDIO
    if output is None and not play:
        output = f"{name}.wav"
    if output == STDIO and sys.stdout.isatty():
        raise BadInput("audio would fill the terminal; pipe it, or name a file with -o")
    if output not in (None, STDIO):
        from ..audio import check_format

        check_format(output, raw=raw)
        check_writable(output)
    return output, play


def _check_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise BadInput(f"{option} must lie between {low:g} and {high:g}, not {value:g}")


def _voice(voice: str | None, synthesizer: Any) -> Any:
    """The voice as the synthesizer takes it: None, a name that it knows, or the content of a voice file."""
    from ...tts.voices import SUFFIX, load_voice, unknown_voice

    if voice is None or voice in synthesizer.voices:
        return voice
    if not voice.endswith(SUFFIX):
        raise unknown_voice(voice, synthesizer.voices)
    if synthesizer.timed:
        raise BadInput("this model knows its voices by name; voice files need a token model with a flow (--model)")
    return load_voice(voice)


def _check_table(path: str) -> str:
    from ..timestamps import WRITERS

    if Path(path).suffix.lower() not in WRITERS:
        raise BadInput(f"{path}: time tables are {' or '.join(WRITERS)}")
    check_writable(path)
    return path


def _write_table(path: str, run: _Run) -> None:
    from ..files import replacing
    from ..timestamps import WRITERS

    text = WRITERS[Path(path).suffix.lower()](run.words, run.phones, run.seconds)
    with replacing(path) as file:
        file.write(text.encode())


def _with_progress(chunks: Iterable[AudioChunk]) -> Iterator[AudioChunk]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("speaking"), BarColumn(), TextColumn("{task.fields[audio]:.0f} s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("speaking", total=1.0, audio=0.0)
        seconds = 0.0
        for chunk in chunks:
            seconds += len(chunk.samples) / chunk.sample_rate
            progress.update(task, completed=chunk.progress, audio=seconds)
            yield chunk


def _report(run: _Run, target: str | None, loading: float) -> None:
    """The file's name on stdout, for scripts; the figures on stderr, for people."""
    times = run.seconds / max(run.busy, 1e-9)
    line = (
        f"{run.seconds:.2f} s of speech in {run.busy:.2f} s ({times:.1f} times real time), "
        f"first audio after {1000 * run.first:.0f} ms, model loaded in {loading:.1f} s"
    )
    if target not in (None, STDIO):
        typer.echo(target)
    typer.echo(line, err=True)
