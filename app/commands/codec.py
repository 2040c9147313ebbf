"""`quaver codec`: audio into .qvr files and back, in constant memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import BadInput, CorruptFile
from ..files import STDIO, check_readable, check_writable, replacing
from .batch import PART, RETRY, SHARD_ROWS, WORKERS, cores, parse_part, run_and_report, template_of

if TYPE_CHECKING:
    import numpy as np

    from ...codecs.base import Codec
    from ...codecs.container import QvrHeader, QvrReader

DEFAULT_CODEC = "quaver-24k"

app = typer.Typer(help="Neural audio coding: encode, decode, and look into .qvr files.", no_args_is_help=True)


@app.command("encode")
def encode(
    source: Annotated[
        str, typer.Argument(help='Audio file of any rate, up to 8 channels; "-" for stdin; or a folder of them.')
    ],
    target: Annotated[
        str | None,
        typer.Argument(help='The .qvr file, "-" for stdout; by default beside the source. Of a folder: a folder.'),
    ] = None,
    codec: Annotated[
        str, typer.Option("--codec", help="Bundled codec, folder, or hub id (kyutai/mimi).")
    ] = DEFAULT_CODEC,
    codebooks: Annotated[int | None, typer.Option("--codebooks", help="Keep only the first so many codebooks.")] = None,
    chunk_frames: Annotated[int, typer.Option("--chunk-frames", help="Frames under one checksum.")] = 50,
    entropy: Annotated[
        bool, typer.Option("--entropy", help="Code by how often codes occur: smaller, and needs the codec's tables.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    workers: WORKERS = None,
    shard_rows: SHARD_ROWS = 0,
    part: PART = "1/1",
    retry_failed: RETRY = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no figures.")] = False,
) -> int:
    """Code audio into a .qvr file, or a folder of audio into a folder of .qvr files (a job: docs/batch.md)."""
    if source != STDIO and Path(source).is_dir():
        if target is None:
            raise BadInput("name the folder that is to hold the .qvr files")
        from ..batch.coding import CodingWork
        from ..batch.names import Names
        from ..batch.rows import audio_rows
        from ..batch.run import Job, local

        work = CodingWork(codec, codebooks, chunk_frames, entropy)
        names = Names(template_of(None, shard_rows), work.suffix, shard_rows)
        rows = partial(audio_rows, Path(source))
        job = Job(rows, Path(target), work, names, part=parse_part(part), retry_failed=retry_failed)
        return run_and_report(job, local(workers or cores(), threads), quiet)
    target = target or _beside(source, ".qvr")
    if target != STDIO:
        check_writable(target)
    elif sys.stdout.isatty():
        raise BadInput("the codes would fill the terminal; pipe them, or name a file")
    if not 1 <= chunk_frames <= 1 << 16:
        raise BadInput(f"--chunk-frames must lie between 1 and 65536, not {chunk_frames}")
    from ..audio import open_audio
    from ..coding import Coder

    with open_audio(source) as audio:
        coder = Coder.load(codec, threads, codebooks=codebooks, chunk_frames=chunk_frames, entropy=entropy)
        started = time.perf_counter()
        with replacing(target) as file:
            made = coder.encode(audio, file)
        if not quiet:
            _report(target, made.seconds, time.perf_counter() - started, made.bytes)
    return 0


@app.command("decode")
def decode(
    source: Annotated[str, typer.Argument(help='A .qvr file; "-" for stdin.')],
    target: Annotated[
        str | None, typer.Argument(help='Audio file, "-" for stdout; by default beside the source.')
    ] = None,
    codec: Annotated[
        str | None, typer.Option("--codec", help="Use this codec instead of the one the file names.")
    ] = None,
    codebooks: Annotated[int | None, typer.Option("--codebooks", help="Use only the first so many codebooks.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Bare 16-bit samples instead of WAV on stdout.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no figures.")] = False,
) -> None:
    """Turn a .qvr file back into audio, at the codec's sample rate, to the exact length that went in."""
    from ...codecs.container import QvrReader
    from ..audio import AudioWriter, check_format
    from ..coding import levels_of, load_marked, tables_of

    target = target or _beside(source, ".wav")
    if target != STDIO:
        check_format(target, raw=raw)
        check_writable(target)
    elif sys.stdout.isatty():
        raise BadInput("audio would fill the terminal; pipe it, or name a file")
    with _open_binary(source) as (file, name):
        reader = QvrReader(file, name, lambda _: tables_of(used, mark))
        used = codec or _named(reader.header, name)
        model, mark = load_marked(used, threads)
        _check_match(reader.header, model, mark, name)
        started = time.perf_counter()
        with AudioWriter(target, model.sample_rate, reader.header.channels, raw=raw) as writer:
            for block in _decoded(model, reader, levels_of(codebooks, model), name):
                writer.write(block)
        if not quiet:
            _report(target, writer.samples / model.sample_rate, time.perf_counter() - started, None)


@app.command("info")
def info(source: Annotated[str, typer.Argument(help='A .qvr file; "-" for stdin.')]) -> None:
    """Verify a .qvr file and print what it holds, as `key: value` lines."""
    from ...codecs.container import QvrReader, qvr_size, verified

    with _open_binary(source) as (file, name):
        reader = QvrReader(file, name)
        header = verified(reader)
    samples, frames = header.samples or 0, header.frames or 0
    seconds = samples / header.sample_rate
    rows: dict[str, Any] = {
        "model": header.model,
        "weights sha256": header.weights_sha256 or "not recorded",
        "seconds": f"{seconds:.3f}",
        "samples": f"{samples} at {header.sample_rate} Hz, {header.channels} channel{'s' * (header.channels > 1)}",
        "frames": f"{frames} at {_rate(header.rate)} Hz",
        "codes": f"{header.codebooks} codebooks of {header.vocab}",
        "bitrate": f"{float(header.bitrate) / 1000:.3g} kbit/s",
        "coder": _coder(header, reader.bytes, qvr_size(header, frames)),
        "bytes": reader.bytes,
        "state": "complete, every checksum matches",
    }
    for key, value in rows.items():
        typer.echo(f"{key}: {value}")


@app.command("fit-entropy")
def fit(
    codec: Annotated[str, typer.Argument(help="The codec: a folder, or a bundled name.")],
    sources: Annotated[list[Path], typer.Argument(help="Audio files, or folders of them, such as will be coded.")],
    minutes: Annotated[float | None, typer.Option("--minutes", help="Listen to no more than this.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write here instead of into the codec's folder.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order in which files are taken.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
) -> None:
    """Count how often codes follow each other, for `codec encode --entropy`: the codec's entropy tables."""
    import random

    from ...codecs.entropy import save_tables
    from ...codecs.loading import codec_folder
    from ..batch.rows import Row, audio_rows
    from ..coding import Coder, fit_entropy

    files: list[str] = []
    for path in sources:
        files += [row.source for row in audio_rows(path) if isinstance(row, Row)] if path.is_dir() else [str(path)]
    random.Random(seed).shuffle(files)
    coder = Coder.load(codec, threads)
    tables, seconds = fit_entropy(coder, files, minutes)
    path = save_tables(tables, out or codec_folder(codec), coder.mark[1])
    typer.echo(path)
    typer.echo(f"{seconds / 60:.1f} minutes heard, tables {tables.mark}", err=True)


@app.command("export-onnx")
def export(
    codec: Annotated[str, typer.Argument(help="A native codec: a bundled name, or a folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for encoder.onnx, decoder.onnx and codec.json.")],
) -> None:
    """Write the codec's encoder and decoder step as ONNX graphs, with the stream's state as inputs and outputs."""
    from ...codecs.export_onnx import export_onnx
    from ...codecs.loading import load_codec

    for path in export_onnx(load_codec(codec), out):
        typer.echo(path)


@app.command("list")
def list_codecs() -> None:
    """List the codecs that --codec knows by name: what each is, and whether it streams (if not, why)."""
    from ...codecs.published import PUBLISHED, REFUSED
    from ..models import bundled

    for model in bundled("codec"):
        typer.echo(f"{model.name}\tstreams\t{model.summary}")
    for family in PUBLISHED.values():
        streams = f"whole recordings only: {family.no_stream}" if family.no_stream else "streams"
        for name in family.ids:
            typer.echo(f"{name}\t{streams}\t{family.summary}")
    for name, reason in REFUSED.items():
        typer.echo(f"{name}\tnot supported: {reason}\t")


def _coder(header: QvrHeader, size: int, packed: int) -> str:
    if header.tables is None:
        return "packed"
    return f"entropy, tables {header.tables}, {100 * (1 - size / packed):.1f} % smaller than packed"


def _named(header: QvrHeader, name: str) -> str:
    """The bundled codec that made the file: a file may not choose a folder on the reader's disk."""
    from ..models import bundled

    if header.model not in [model.name for model in bundled("codec")]:
        raise BadInput(
            f"{name} was made by the codec {header.model!r}, which is not bundled; name its folder with --codec"
        )
    return header.model


def _check_match(header: QvrHeader, model: Codec, mark: tuple[str, str], name: str) -> None:
    """Codes mean something only to the weights that made them."""
    spec = model.frame_spec
    shape = (header.sample_rate, header.rate, header.vocab)
    if shape != (model.sample_rate, spec.rate, spec.vocab) or header.codebooks > spec.codebooks:
        raise BadInput(
            f"{name} was made by {header.model}, whose frames are of another kind; decode it with that codec"
        )
    if header.weights_sha256 and mark[1] and header.weights_sha256 != mark[1]:
        made, here = header.weights_sha256[:12], mark[1][:12]
        raise BadInput(
            f"{name} was made by weights {made} of {header.model}, {mark[0]} here has {here}; "
            "decode it with the former (--codec FOLDER), or encode the audio again"
        )


def _decoded(model: Codec, reader: QvrReader, levels: int, name: str) -> Iterator[np.ndarray]:
    """Chunks of codes -> audio [channels, n]: without the codec's latency, and cut to the exact length.

    The length may be known only at the end of the file, so one frame is always held back.
    """
    import torch

    with torch.inference_mode():
        state = None if model.no_stream else model.init_state(reader.header.channels)
        held = torch.zeros(reader.header.channels, 0)
        skip, given = model.latency, 0
        for audio in _decoded_raw(model, reader, levels, state):
            held = torch.cat([held, audio[:, 0, skip:]], 1)
            skip -= min(skip, audio.shape[2])
            ready = max(0, held.shape[1] - model.frame_size)
            if ready:
                given += ready
                yield held[:, :ready].numpy()
                held = held[:, ready:]
    rest = (reader.samples or 0) - given
    if not 0 <= rest <= held.shape[1]:
        raise CorruptFile(f"{name} is damaged: it promises {reader.samples} samples in {reader.frames} frames")
    if not given + rest:
        raise BadInput(f"{name} holds no samples")
    yield held[:, :rest].numpy()


def _decoded_raw(model: Codec, reader: QvrReader, levels: int, state: Any) -> Iterator[Any]:
    import torch

    if state is None:  # the codec must see all codes at once
        blocks = [torch.from_numpy(codes[:, :levels]) for codes in reader]
        if blocks:
            yield model.decode(torch.cat(blocks, 2))
        return
    for codes in reader:
        yield model.decode(torch.from_numpy(codes[:, :levels]), state=state)
    yield model.flush(state)


class _open_binary:
    """A file or standard input, opened for reading: (file, name)."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> tuple[Any, str]:
        if self._source == STDIO:
            self._file = None
            return sys.stdin.buffer, "standard input"
        self._file = check_readable(self._source, ".qvr file").open("rb")
        return self._file, self._source

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def _beside(source: str, suffix: str) -> str:
    if source == STDIO:
        return STDIO
    return str(Path(source).with_suffix(suffix))


def _rate(rate: Fraction) -> str:
    return f"{float(rate):g}"


def _report(target: str, seconds: float, took: float, size: int | None) -> None:
    """The file's name on stdout, for scripts; the figures on stderr, for people."""
    if target != STDIO:
        typer.echo(target)
    line = f"{seconds:.2f} s of audio in {took:.2f} s ({seconds / max(took, 1e-9):.1f} times real time)"
    if size is not None and seconds:
        line += f", {size} bytes, {size * 8 / seconds / 1000:.2f} kbit/s"
    typer.echo(line, err=True)
