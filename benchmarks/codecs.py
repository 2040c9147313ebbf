"""Codecs side by side: `python benchmarks/codecs.py --out runs/codecs --files MANIFEST --asr FOLDER`.

Speed: on one CPU thread (and with `--device cuda` on a GPU), all systems on the same audio, one after the other in
every round, so that what else the machine does falls on all of them alike; medians over rounds, wall and CPU time.
EnCodec, Mimi and DAC have random weights: their cost is that of the trained models, and nothing is fetched. Streams are
stepped frame by frame, encode and decode together: p50 and p99 of a step.

Quality (`--files`): ours, and Opus at 6 and 12 kbit/s through PyAV, on the same recordings at 24 kHz: PESQ, STOI,
speaker similarity to the original, and WER by Whisper (against what it hears in the original, if the text is unknown).

`--moshi FOLDER` is where the package `moshi` was installed to (`pip install --target FOLDER --no-deps moshi`).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quaver.codecs.base import Codec
from quaver.codecs.frame_stream import FrameStream
from quaver.codecs.loading import load_codec
from quaver.evaluation.coding import Recording, list_recordings
from quaver.evaluation.judges import Judges
from quaver.evaluation.metrics import Sample, choose
from quaver.evaluation.report import System
from quaver.evaluation.scoring import score
from quaver.evaluation.voices import read_mono
from quaver.nn.packed import pack_linears

Row = dict[str, Any]
QUALITY = ("wer", "similarity", "pesq", "stoi")
MIMI_LEVELS, ENCODEC_LEVELS = 8, 8


@dataclass
class Entry:
    """One system. `encode`: audio float32 [1, 1, sample] -> what `decode` takes; `stream`: None, or -> a function that
    takes a frame of audio through encoder and decoder."""

    name: str
    sample_rate: int
    frame_size: int
    bitrate: float
    parameters: int
    encode: Callable[[torch.Tensor], Any]
    decode: Callable[[Any], Any]
    stream: Callable[[], Callable[[torch.Tensor], Any]] | None = None
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    steps: list[tuple[float, float]] = field(default_factory=list)


def clock(call: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Wall and CPU seconds of a call, and what it gave."""
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    made = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, made


def of_ours(name: str, codec: Codec, levels: int | None = None, recorded: bool = False) -> Entry:
    spec = codec.frame_spec
    kept = levels or spec.codebooks

    def stream() -> Callable[[torch.Tensor], Any]:
        if recorded:
            frames = FrameStream(codec)
            return lambda frame: frames.decode(frames.encode(frame))
        state = codec.init_state(1)
        return lambda frame: codec.decode(codec.encode(frame, state=state)[0][:, :kept], state)

    return Entry(
        name,
        codec.sample_rate,
        codec.frame_size,
        float(spec.rate) * kept * (spec.vocab - 1).bit_length(),
        sum(p.numel() for p in codec.parameters()),
        lambda audio: codec.encode(audio)[0][:, :kept],
        codec.decode,
        None if codec.no_stream else stream,
    )


def of_transformers(name: str, model: Any, rate: int, hop: int, levels: int, encode: Any, decode: Any) -> Entry:
    bits = (model.config.codebook_size - 1).bit_length()
    parameters = sum(p.numel() for p in model.parameters())
    return Entry(name, rate, hop, rate / hop * levels * bits, parameters, encode, decode)


def entries(device: str, moshi: Path | None) -> Iterator[Entry]:
    from encodec import EncodecModel
    from transformers import DacConfig, DacModel, MimiModel
    from transformers import MimiConfig as TheirMimi

    from quaver.codecs.encodec_causal import EncodecCodec, EncodecConfig
    from quaver.codecs.mimi import MimiCodec, MimiConfig

    torch.manual_seed(0)
    plain = of_ours("quaver-24k", load_codec().to(device))
    yield plain
    if device == "cpu":
        yield of_ours("quaver-24k, recorded", load_codec(), recorded=True)
        half = load_codec()
        pack_linears(half)
        last = of_ours("quaver-24k, recorded, half precision", half, recorded=True)
        last.parameters = plain.parameters  # packed weights are not counted as parameters any more
        yield last
    encodec = EncodecModel.encodec_model_24khz(pretrained=False).eval().to(device)
    encodec.set_target_bandwidth(6.0)
    parameters = sum(p.numel() for p in encodec.parameters())
    yield Entry("EnCodec 24k (encodec)", 24_000, 320, 6000.0, parameters, encodec.encode, encodec.decode)
    ours = EncodecCodec(EncodecConfig()).eval().to(device)
    ours.keep(ENCODEC_LEVELS)
    yield of_ours("EnCodec 24k (quaver)", ours)
    mimi: Any = MimiModel(TheirMimi()).eval()
    mimi.to(device)
    yield of_transformers(
        "Mimi (transformers)", mimi, 24_000, 1920, MIMI_LEVELS,
        lambda audio: mimi.encode(audio, num_quantizers=MIMI_LEVELS).audio_codes,
        lambda codes: mimi.decode(codes).audio_values,
    )  # fmt: skip
    if moshi is not None:
        yield of_moshi(moshi, device)
    codec = MimiCodec(MimiConfig()).eval().to(device)
    codec.keep(MIMI_LEVELS)
    yield of_ours("Mimi (quaver)", codec)
    shape: dict[str, Any] = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24_000}
    dac: Any = DacModel(DacConfig(**shape)).eval()
    dac.to(device)
    yield of_transformers(
        "DAC 24k (transformers)", dac, 24_000, 320, 32,
        lambda audio: dac.encode(audio).audio_codes, lambda codes: dac.decode(audio_codes=codes).audio_values,
    )  # fmt: skip


def of_moshi(folder: Path, device: str) -> Entry:
    sys.path.append(str(folder))
    from moshi.models import loaders  # type: ignore[import-not-found]

    model = loaders.get_mimi(None, device=device)
    model.set_num_codebooks(MIMI_LEVELS)

    def stream() -> Callable[[torch.Tensor], Any]:
        model._stop_streaming() if model.is_streaming else None
        model.streaming_forever(1)
        return lambda frame: model.decode(model.encode(frame))

    def whole(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(given: Any) -> Any:
            if model.is_streaming:
                model._stop_streaming()
            return call(given)

        return run

    parameters = sum(p.numel() for p in model.parameters())
    return Entry(
        "Mimi (moshi)", 24_000, 1920, 1100.0, parameters, whole(model.encode), whole(model.decode), stream
    )  # fmt: skip


def speed(device: str, moshi: Path | None, seconds: float, rounds: int, steps: int, only: str) -> list[Row]:
    systems = []
    for system in entries(device, moshi):
        if not system.name.startswith(only):
            break
        systems.append(system)
    generator = torch.Generator().manual_seed(0)
    audio = (0.1 * torch.randn(1, 1, int(seconds * 24_000) // 1920 * 1920, generator=generator)).to(device)
    frames = {system.name: system.encode(audio) for system in systems}  # warms up, too
    for _ in range(rounds):
        for system in systems:
            for what, call in (("encode", lambda s=system: s.encode(audio)),
                               ("decode", lambda s=system: s.decode(frames[s.name]))):  # fmt: skip
                wall, cpu, _ = clock(call, device)
                system.times.setdefault(what, []).append((wall, cpu))
        for system in systems:
            if system.stream is None:
                continue
            step = system.stream()
            pieces = audio.split(system.frame_size, -1)
            for i in range(steps + 3):
                wall, cpu, _ = clock(lambda i=i, p=pieces, s=step: s(p[i % len(p)]), device)
                if i >= 3:
                    system.steps.append((wall, cpu))
    return [speed_row(system, audio.shape[-1] / 24_000) for system in systems]


def speed_row(system: Entry, seconds: float) -> Row:
    row: Row = {"system": system.name, "parameters": system.parameters, "bitrate": system.bitrate}
    for what, times in system.times.items():
        wall, cpu = np.median(np.array(times), 0) / seconds
        row |= {f"{what}_wall": float(wall), f"{what}_cpu": float(cpu)}
    row["frame_ms"] = 1000 * system.frame_size / system.sample_rate
    if system.steps:
        for k, kind in enumerate(("wall", "cpu")):
            p50, p99 = np.percentile(1000 * np.array(system.steps)[:, k], [50, 99])
            row |= {f"step_{kind}_p50": float(p50), f"step_{kind}_p99": float(p99)}
    return row


# -- quality ----------------------------------------------------------------------------------------------------------
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


SPEED = {
    "system": lambda row: str(row["system"]),
    "M parameters": number("parameters", 1, 1e-6),
    "kbit/s": number("bitrate", 1, 1e-3),
    "encode, CPU s per s": number("encode_cpu", 3),
    "decode, CPU s per s": number("decode_cpu", 3),
    "encode, wall": number("encode_wall", 3),
    "decode, wall": number("decode_wall", 3),
    "frame ms": number("frame_ms", 1),
    "step p50, CPU ms": number("step_cpu_p50", 1),
    "p99, CPU": number("step_cpu_p99", 1),
    "p99, wall": number("step_wall_p99", 1),
}
DRAWN = {
    "encode_cpu": "encode: CPU s per s of audio",
    "decode_cpu": "decode: CPU s per s",
    "step_cpu_p99": "step of a stream, p99, CPU ms",
}
JUDGED = {
    "system": lambda row: str(row["system"]),
    "kbit/s": number("bitrate", 2, 1e-3),
    "PESQ-wb": number("pesq", 2),
    "STOI": number("stoi", 3),
    "similarity": number("similarity", 3),
    "WER %": number("wer", 1),
}


def draw(rows: Sequence[Row], wanted: dict[str, str], path: Path, log: bool) -> None:
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
        if log:
            axes.set_xscale("log")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/codecs"))
    parser.add_argument("--files", type=Path, action="append", default=[], help="folder or manifest of recordings")
    parser.add_argument("--limit", type=int, default=20, help="recordings of each")
    parser.add_argument("--asr", help="faster-whisper folder")
    parser.add_argument("--moshi", type=Path, help="where the package moshi lies")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="frames of a stream in each round")
    parser.add_argument("--only", default="", help="measure the first systems whose names begin so, e.g. quaver")
    parser.add_argument("--no-speed", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    with torch.inference_mode():
        if not args.no_speed:
            found["speed"] = speed(args.device, args.moshi, args.seconds, args.rounds, args.steps, args.only)
            sys.stdout.write(table(found["speed"], SPEED) + "\n")
            draw(found["speed"], DRAWN, args.out / "speed.png", True)
        for files in args.files:
            rows = quality(list_recordings(files, args.limit), args.asr)
            found.setdefault("quality", {})[str(files)] = rows
            sys.stdout.write(f"{files}\n\n" + table(rows, JUDGED) + "\n")
            shown = {"pesq": "PESQ-wb", "stoi": "STOI", "similarity": "speaker similarity", "wer": "WER %"}
            draw(rows, shown, args.out / f"quality-{files.stem}.png", False)
    (args.out / "codecs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
