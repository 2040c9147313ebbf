"""`quaver eval table`, `words`, `speakers`, `zero-shot`: several speaking models side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import BadInput
from ..files import check_readable, check_writable
from .eval import Asr, Limit, Metrics, Quiet, Seed, Threads

Models = Annotated[list[str], typer.Argument(help="Bundled models or folders.")]
Voice = Annotated[str | None, typer.Option("--voice", help="The voice of each model; by default its own choice.")]
Baseline = Annotated[
    list[str] | None, typer.Option("--baseline", help="A teacher on the same sentences: hibari, kokoro:am_michael ...")
]
Refs = Annotated[Path | None, typer.Option("--speaker-refs", help="Recordings of each voice, for the similarity.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table (.md), or all of it (.json).")]
Texts = Annotated[Path, typer.Option("--texts", help="Sentences, one a line.")]


def table(
    models: Models, texts: Texts, asr: Asr = None, voice: Voice = None, baseline: Baseline = None,
    speaker_refs: Refs = None, metric: Metrics = None, limit: Limit = None, seed: Seed = 0, threads: Threads = 1,
    out: Out = None, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Several models on the same sentences, one row each: layout, head, parameters, figures."""
    check_readable(texts, "list of sentences")
    _ready(out)
    from ...evaluation.tts_table import compare_models

    found, reports = compare_models(
        models, texts, voice=voice, baseline=baseline or (), asr=asr, metrics=metric or None, limit=limit, seed=seed,
        threads=threads, speaker_refs=speaker_refs, progress=not quiet,
    )  # fmt: skip
    _show(found, out, [json.loads(report.to_json()) for report in reports])


def words(
    models: Models, asr: Annotated[str, typer.Option("--asr", help="faster-whisper folder or hub name.")],
    voice: Voice = None, baseline: Baseline = None, limit: Limit = None, seed: Seed = 0, threads: Threads = 1,
    out: Out = None,
) -> None:  # fmt: skip
    """Words that are skipped or repeated on 30 sentences made to lose one's place in."""
    _ready(out)
    from ...evaluation.tts_stress import STRESS
    from ...evaluation.tts_table import stress_table

    found, heard = stress_table(
        models, asr=asr, voice=voice, baseline=baseline or (), texts=STRESS[:limit], seed=seed, threads=threads
    )
    _show(found, out, heard)


def speakers(
    model: Annotated[str, typer.Argument(help="Bundled model or folder.")],
    pack: Annotated[list[Path], typer.Option("--pack", help="Pack with speakers to compare with (repeatable).")],
    texts: Texts, limit: Annotated[int, typer.Option("--limit", min=1, help="Sentences of each voice.")] = 10,
    own: Annotated[
        list[str] | None, typer.Option("--own", help="VOICE=SPEAKER where the names differ (repeatable).")
    ] = None,
    seed: Seed = 0, threads: Threads = 1, out: Out = None,
) -> None:  # fmt: skip
    """Each voice of a model against every speaker of some packs."""
    check_readable(texts, "list of sentences")
    _ready(out)
    if wrong := [pair for pair in own or () if pair.count("=") != 1]:
        raise BadInput(f"--own takes VOICE=SPEAKER, not {wrong[0]!r}")
    from ...evaluation.judges import Judges
    from ...evaluation.tts_speakers import speakers_of_pack, voice_matrix
    from ...evaluation.tts_table import sentences_of
    from ...tts.synthesizer import load_synthesizer
    from ..runtime import use_threads

    use_threads(threads)
    found = voice_matrix(
        load_synthesizer(model), sentences_of(texts, limit), speakers_of_pack(pack), Judges(threads=threads), seed=seed,
        names=dict(pair.split("=") for pair in own or ()),
    )  # fmt: skip
    _show(found.table(), out, {"speakers": found.speakers, "voices": found.voices, "cosines": found.cosines.tolist()})


def zero_shot(
    model: Annotated[str, typer.Argument(help="A token model with a flow.")],
    folder: Annotated[Path, typer.Option("--speakers", help="FOLDER/SPEAKER/*.flac, two recordings each or more.")],
    texts: Texts, sentences: Annotated[int, typer.Option("--sentences", min=1, help="Of each speaker.")] = 3,
    limit: Limit = None, seed: Seed = 0, threads: Threads = 1, out: Out = None,
) -> None:  # fmt: skip
    """Imitate unknown speakers from 5 s, and ask whom it sounds like."""
    check_readable(texts, "list of sentences")
    _ready(out)
    from ...evaluation.judges import Judges
    from ...evaluation.tts_speakers import zero_shot as imitate
    from ...evaluation.tts_table import sentences_of
    from ...tts.synthesizer import load_synthesizer
    from ..runtime import use_threads

    use_threads(threads)
    found = imitate(
        load_synthesizer(model), folder, sentences_of(texts, sentences), Judges(threads=threads), seed=seed, limit=limit
    )
    _show(found.table(), out, {"speakers": found.speakers, "cosines": found.cosines.tolist()})


def _ready(out: Path | None) -> None:
    if out is not None:
        if out.suffix not in (".md", ".json"):
            raise BadInput(f"{out}: name a file that ends in .md or .json")
        check_writable(out)


def _show(table: Any, out: Path | None, everything: Any) -> None:
    from ..files import replacing

    shown = table.markdown()
    typer.echo(shown)
    if out is not None:
        text = shown if out.suffix == ".md" else json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
        with replacing(out) as file:
            file.write(text.encode())
