"""`quaver corpus`: speech to train on, made by teacher voices or imported, and packed for the trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import BadInput
from ..files import check_readable
from .batch import ADDRESS, ENGINE, PART, RETRY, SHARD_ROWS, WORKERS, parse_part, run_and_report, runner_of, template_of

if TYPE_CHECKING:
    from ...training.build import VoiceReport
    from ..batch.rows import Row

app = typer.Typer(help="Make, import and pack speech corpora for training.", no_args_is_help=True)

OUT = Annotated[Path, typer.Option("--out", "-o", help="Folder of the corpus; a stopped run goes on in it.")]
JOBS = Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes, one thread each.")]
PACKS = Annotated[list[Path], typer.Argument(help="Folders made by `quaver corpus pack`.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no table.")]


@app.command("build")
def build(
    out: OUT,
    teacher: Annotated[
        list[str], typer.Option("--teacher", "-t", help="NAME, NAME:VOICE or NAME:VOICE=HOURS; repeat for more voices.")
    ],
    texts: Annotated[Path, typer.Option("--texts", help="Sentences to read, one a line.")],
    hours: Annotated[float, typer.Option("--hours", min=0, help="Hours for each teacher that names none.")] = 1.0,
    exclude: Annotated[
        list[Path] | None, typer.Option("--exclude", help="Sentences never to read (held-out texts); repeat for more.")
    ] = None,
    speed_range: Annotated[
        tuple[float, float], typer.Option("--speed-range", help="Slowest and fastest pace, drawn evenly.")
    ] = (0.9, 1.15),
    seed: Annotated[int, typer.Option("--seed", help="Which sentences, at which pace.")] = 0,
    jobs: JOBS = 1,
    kokoro_dir: Annotated[
        Path | None, typer.Option("--kokoro-dir", envvar="KOKORO_DIR", help="Folder of the Kokoro model.")
    ] = None,
    quiet: QUIET = False,
) -> None:
    """Let teacher voices read sentences: 24 kHz FLAC, phonemes, a lhotse manifest and a report."""
    from ...training.build import build_corpus, read_texts
    from ...training.teachers import parse_teacher

    specs = [parse_teacher(text, hours) for text in teacher]
    sentences = read_texts(check_readable(texts, "text file"), exclude or ())
    kokoro = str(kokoro_dir) if kokoro_dir else None
    with _progress(quiet) as tick:
        reports = build_corpus(
            out, specs, sentences, seed=seed, speeds=speed_range, jobs=jobs, kokoro=kokoro, tick=tick
        )
    _show(reports, out, quiet)


@app.command("import")
def import_(
    out: OUT,
    manifest: Annotated[Path, typer.Option("--manifest", "-m", help="JSON lines: path, text, maybe voice, phonemes.")],
    voice: Annotated[str, typer.Option("--voice", help="Speaker of every row, whatever the rows say.")] = "",
    jobs: JOBS = 1,
    quiet: QUIET = False,
) -> None:
    """Take over existing speech of any audio format."""
    from ...training.build import import_corpus

    check_readable(manifest, "manifest")
    with _progress(quiet) as tick:
        reports = import_corpus(out, manifest, voice=voice, jobs=jobs, tick=tick)
    _show(reports, out, quiet)


@app.command("pack")
def pack(
    manifest: Annotated[
        Path, typer.Argument(help="manifest.jsonl.gz of a corpus, plain JSON lines, or a folder of audio files.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the pack.")],
    hours: Annotated[float | None, typer.Option("--hours", min=0, help="Only the first so many hours.")] = None,
    voice: Annotated[list[str] | None, typer.Option("--voice", help="Only this speaker; repeat for more.")] = None,
    textless: Annotated[
        bool, typer.Option("--textless", help="Take rows without a text too (only codecs can be trained on them).")
    ] = False,
    jobs: JOBS = 1,
    f0: Annotated[bool, typer.Option("--f0/--no-f0", help="Add pitch tracks (harmonic decoder, evaluation).")] = True,
    quiet: QUIET = False,
) -> None:
    """Lay a corpus out for training: all audio in one memory-mapped file."""
    from ...training.pack import pack_manifest

    if not manifest.is_dir():
        check_readable(manifest, "manifest")
    with _progress(quiet) as tick:

        def counted(items: Iterable[Any], total: int) -> Iterator[Any]:
            for number, item in enumerate(items, 1):
                yield item
                tick("audio", number, total)

        made = pack_manifest(
            manifest, out, hours=hours, voices=voice or (), textless=textless, jobs=jobs, progress=counted
        )
    if f0:
        _add_track([out], "f0", "", jobs, quiet)
    if not quiet:
        seconds = sum(entry.seconds for entry in made.entries)
        typer.echo(f"{out}: {len(made)} utterances, {seconds / 3600:.2f} h", err=True)


@app.command("f0")
def f0(packs: PACKS, jobs: JOBS = 1, quiet: QUIET = False) -> None:
    """Add pitch tracks, which `pack` does by itself unless told not to."""
    _add_track(packs, "f0", "", jobs, quiet)


@app.command("durations")
def durations(
    packs: PACKS,
    manifest: Annotated[Path, typer.Option("--manifest", "-m", help="What the pack was made of.")],
    quiet: QUIET = False,
) -> None:
    """Add the phone times that the hibari teacher knows, to start the phoneme recogniser off."""
    check_readable(manifest, "manifest")
    _add_track(packs, "durations", str(manifest), 1, quiet)


@app.command("align")
def align(
    packs: PACKS,
    model: Annotated[str, typer.Option("--model", "-m", help="Semantic tokenizer: a run, or a bundled model.")],
    jobs: JOBS = 1,
    quiet: QUIET = False,
) -> None:
    """Add phone times by forced alignment; language models are trained on them."""
    _add_track(packs, "align", model, jobs, quiet)


@app.command("codes")
def codes(
    packs: PACKS,
    codec: Annotated[str, typer.Option("--codec", "-c", help="Codec: a run, or a bundled model. Its name names them.")],
    jobs: JOBS = 1,
    quiet: QUIET = False,
) -> None:
    """Add a codec's codes; language models are trained on them."""
    _add_track(packs, "codes", codec, jobs, quiet)


@app.command("tokens")
def tokens(
    source: Annotated[
        Path, typer.Argument(help="A manifest of a corpus (lhotse or JSON lines), or a folder of audio.")
    ],
    out: OUT,
    codec: Annotated[str, typer.Option("--codec", "-c", help="Bundled codec, or a folder.")] = "quaver-24k",
    codebooks: Annotated[int | None, typer.Option("--codebooks", help="Keep only the first so many codebooks.")] = None,
    workers: WORKERS = None,
    shard_rows: SHARD_ROWS = 0,
    part: PART = "1/1",
    retry_failed: RETRY = False,
    engine: ENGINE = "local",
    address: ADDRESS = None,
    quiet: QUIET = False,
) -> int:
    """Turn a corpus into tokens: a .qvr file an utterance, and a manifest with its text, speaker and phones."""
    from ..batch.coding import CodingWork
    from ..batch.names import Names
    from ..batch.rows import audio_rows
    from ..batch.run import Job

    work = CodingWork(codec, codebooks)
    names = Names(template_of(None, shard_rows), work.suffix, shard_rows)
    rows = partial(audio_rows if source.is_dir() else _manifest_rows, source)
    job = Job(rows, out, work, names, part=parse_part(part), retry_failed=retry_failed)
    return run_and_report(job, runner_of(job, engine, address, workers), quiet)


def _manifest_rows(manifest: Path) -> Iterator[Row]:
    """The utterances of a manifest, as rows of a job."""
    from ...training.corpus import manifest_rows
    from ..batch.rows import Row

    check_readable(manifest, "manifest")
    for number, row in enumerate(manifest_rows(manifest), 1):
        extra = tuple((key, row[key]) for key in ("phonemes",) if row.get(key))
        voice = str(row["voice"]) if row.get("voice") else None
        source = str((manifest.parent / row["path"]).absolute())
        yield Row(number, row["id"], str(row.get("text") or ""), voice, source=source, extra=extra)


def _add_track(
    packs: list[Path], kind: Literal["f0", "align", "codes", "durations"], source: str, jobs: int, quiet: bool
) -> None:
    from ...training.pack import Pack
    from ...training.tracks import TrackJob, make_track

    job, opened = TrackJob(kind, source), [Pack(folder) for folder in packs]
    with _progress(quiet) as tick:
        for made in opened:
            make_track(made, job, jobs, partial(tick, f"{kind} {made.folder.name}"))


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A function (name, done, total) that draws one bar a name on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=Console(stderr=True), disable=quiet)
    known: dict[str, Any] = {}

    def tick(name: str, done: float, total: float) -> None:
        if name not in known:
            known[name] = bars.add_task(name, total=total)
            bars.start()  # not before: an empty display would put an empty line before an error's
        bars.update(known[name], completed=min(done, total))

    try:
        yield tick
    finally:
        if known:
            bars.stop()


def _show(reports: dict[str, VoiceReport], out: Path, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("voice", "hours", "utterances", "left out", title=str(out / "manifest.jsonl.gz"))
    for label, report in reports.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(report.rejected.items()))
        table.add_row(label, f"{report.hours:.3f}", str(report.utterances), reasons or "-")
    if not quiet:
        Console(stderr=True).print(table)
    short = [label for label, report in reports.items() if not report.complete]
    if short:
        raise BadInput(
            f"the texts ran out before {', '.join(short)} had read the hours asked for; what there is, is written. "
            "Give more texts or fewer hours"
        )
