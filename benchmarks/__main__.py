"""`make bench`: speed on one CPU thread, side by side with a peer. Measures time only; `quaver eval` measures quality.

EnCodec (package `encodec`, Defossez et al. 2022) runs with random weights: its cost is that of the trained model, and
its weights need not be fetched. The bundled models run as they are.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from quaver.codecs.loading import load_codec
from quaver.errors import QuaverError

SECONDS = 10
REPEATS = 3
TEXT = "The birch canoe slid on the smooth planks, and the sun went down behind the hills."


def timed(call: Callable[[], Any]) -> float:
    """Median seconds of a call, after one that warms up."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def row(name: str, what: str, seconds: float, audio: float) -> None:
    sys.stdout.write(f"| {name} | {what} | {seconds:.2f} s | {audio / seconds:.1f} |\n")
    sys.stdout.flush()


def bench_native() -> None:
    codec = load_codec()
    audio = 0.1 * torch.randn(1, 1, SECONDS * codec.sample_rate)
    codes, _ = codec.encode(audio)
    row("quaver-24k", "encode", timed(lambda: codec.encode(audio)), SECONDS)
    row("quaver-24k", "decode", timed(lambda: codec.decode(codes)), SECONDS)

    def stream() -> None:
        state = codec.init_state(1)
        for start in range(0, codes.shape[2], 2):
            codec.decode(codes[..., start : start + 2], state)

    row("quaver-24k", "decode in chunks of 80 ms", timed(stream), SECONDS)


def bench_encodec() -> None:
    from encodec import EncodecModel

    model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    model.set_target_bandwidth(1.5)
    audio = 0.1 * torch.randn(1, 1, SECONDS * 24000)
    frames = model.encode(audio)
    row("EnCodec 24 kHz", "encode", timed(lambda: model.encode(audio)), SECONDS)
    row("EnCodec 24 kHz", "decode", timed(lambda: model.decode(frames)), SECONDS)


def bench_voice() -> None:
    from quaver.tts.synthesizer import Synthesizer

    synthesizer = Synthesizer.load()
    length = len(synthesizer.say(TEXT).samples) / synthesizer.sample_rate
    row("bundled voice", "say", timed(lambda: synthesizer.say(TEXT)), length)
    first = timed(lambda: next(iter(synthesizer.stream(TEXT))))
    sys.stdout.write(f"| bundled voice | first audio | {first * 1000:.0f} ms | |\n")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", FutureWarning)  # of EnCodec, about torch
    sys.stdout.write("| system | what | time | times real time |\n|---|---|---:|---:|\n")
    with torch.inference_mode():
        for bench in (bench_native, bench_encodec, bench_voice):
            try:
                bench()
            except QuaverError as error:
                sys.stderr.write(f"{bench.__name__}: {error}\n")


if __name__ == "__main__":
    main()
