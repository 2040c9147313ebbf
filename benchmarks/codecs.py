"""What codecs leave of speech: `python benchmarks/codecs.py --out runs/codecs --files MANIFEST --asr FOLDER`.

Ours, and Opus at 6 and 12 kbit/s through PyAV, on the same recordings at 24 kHz: PESQ, STOI, speaker similarity to the
original, and WER by Whisper (against what it hears in the original, if the text is unknown). What codecs cost is in the
rows `codec`, `stream` and `vocoder` of `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quaver.codecs.loading import load_codec
from quaver.evaluation.coding import Recording, list_recordings
from quaver.evaluation.judges import Judges
from quaver.evaluation.metrics import Sample, choose
from quaver.evaluation.report import System
from quaver.evaluation.scoring import score
from quaver.evaluation.voices import read_mono

Row = dict[str, Any]
QUALITY = ("wer", "similarity", "pesq", "stoi")


def opus(audio: np.ndarray, rate: int, bits: int) -> tuple[np.ndarray, float]:
    """What Opus at `bits` per second leaves of float32 [sample], and the bits per second of its packets."""
    import av
    from av.audio.resampler import AudioResampler

    store, taken = io.BytesIO(), 0
    with av.open(store, "w", format="ogg") as file:
        stream: Any = file.add_stream("libopus", rate=rate, layout="mono")
        stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray((audio * 32767).clip(-32768, 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            taken += packet.size
            file.mux(packet)
    store.seek(0)
    resampler, parts = AudioResampler("flt", "mono", rate), []
    with av.open(store, "r") as coded:
        for piece in coded.decode(audio=0):
            parts += [out.to_ndarray()[0] for out in resampler.resample(piece)]
    parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    made = np.concatenate(parts)[: len(audio)]
    return np.pad(made, (0, len(audio) - len(made))).astype(np.float32), 8 * taken * rate / len(audio)


def quality(files: Sequence[Recording], asr: str | None) -> list[Row]:
    codec, judges = load_codec(), Judges(asr)
    metrics = choose([name for name in QUALITY if asr or name != "wer"])

    def ours(audio: np.ndarray) -> tuple[np.ndarray, float]:
        frames = codec.encode(torch.from_numpy(audio)[None, None])[0]
        return codec.decode(frames)[0, 0, : len(audio)].numpy(), 2000.0

    makers: dict[str, Callable[[np.ndarray], tuple[np.ndarray, float]]] = {
        "original": lambda audio: (audio, float("nan")),
        "quaver-24k": ours,
        "Opus 6k": lambda audio: opus(audio, codec.sample_rate, 6000),
        "Opus 12k": lambda audio: opus(audio, codec.sample_rate, 12_000),
    }
    heard: dict[int, str] = {}
    rates: dict[str, list[float]] = {name: [] for name in makers}

    def samples(name: str) -> Iterator[tuple[Row, Sample]]:
        for index, recording in enumerate(files):
            audio, rate = read_mono(recording.path, codec.sample_rate)
            first = Sample(audio, rate)
            if asr and index not in heard:
                heard[index] = recording.text or first.transcript(judges)
            made, bits = makers[name](audio)
            rates[name].append(bits)
            voice = judges.embedding(first.at16)
            yield {"index": index}, Sample(made, rate, heard.get(index), reference=audio, speaker=voice)

    rows = []
    for name in makers:
        chosen = {key: m for key, m in metrics.items() if name != "original" or key == "wer"}
        system: System = score(name, samples(name), chosen, judges)
        figures = {key: estimate.value for key, estimate in system.summary.items()}
        rows.append({"system": name, "bitrate": float(np.mean(rates[name])), **figures})
        sys.stderr.write(f"{name}: {figures}\n")
    return rows


# -- what comes out ---------------------------------------------------------------------------------------------------
def table(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def number(key: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row.get(key)
        return "" if value is None or value != value else f"{scale * value:.{digits}f}"

    return cell


JUDGED = {
    "system": lambda row: str(row["system"]),
    "kbit/s": number("bitrate", 2, 1e-3),
    "PESQ-wb": number("pesq", 2),
    "STOI": number("stoi", 3),
    "similarity": number("similarity", 3),
    "WER %": number("wer", 1),
}


def draw(rows: Sequence[Row], wanted: dict[str, str], path: Path) -> None:
    """One panel of bars per column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(wanted), 0.4 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (key, title) in enumerate(wanted.items()):
        axes = figure.add_subplot(1, len(wanted), place + 1)
        values = [row.get(key) or 0.0 for row in rows]
        axes.barh(range(len(rows)), values, color="#4c78a8")
        for i, value in enumerate(values):
            axes.text(value, i, f" {value:.3g}" if value else " –", va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), [row["system"] if place == 0 else "" for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=8)
        axes.margins(x=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--files", type=Path, action="append", required=True, help="folder or manifest of recordings")
    parser.add_argument("--limit", type=int, default=20, help="recordings of each")
    parser.add_argument("--asr", help="faster-whisper folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with torch.inference_mode():
        for files in args.files:
            rows = quality(list_recordings(files, args.limit), args.asr)
            found.setdefault("quality", {})[str(files)] = rows
            sys.stdout.write(f"{files}\n\n" + table(rows, JUDGED) + "\n")
            shown = {"pesq": "PESQ-wb", "stoi": "STOI", "similarity": "speaker similarity", "wer": "WER %"}
            draw(rows, shown, args.out / f"quality-{files.stem}.png")
    (args.out / "codecs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
