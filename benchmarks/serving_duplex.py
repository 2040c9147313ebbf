"""Paced conversations on the engine, without sockets: `python benchmarks/serving_duplex.py --sessions 1 2 4 8`.

Every session sends a frame of microphone each frame's time, whether or not the one before has been answered (open
loop), on a clock that counts the engine thread's own CPU time: what it does on a core of its own. Without `--model` the
model has the sizes of `recipes/duplex-cpu.yaml` and random weights: what a step costs does not depend on them.

C100 is the share of sessions whose every answer came at most 100 ms later after its frame than the session's first.

`--ticks N` measures instead what a tick costs: CPU time of N steps of all slots, operation by operation and recorded
(`nn.recorded`), in turns on the same audio, and checks that both say the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, median
from time import thread_time
from typing import Any

import numpy as np
import torch
import yaml

from quaver.app.engine import Audio, Engine
from quaver.app.engine_duplex import EngineBackend, EngineLink
from quaver.app.server.duplex import DuplexRequest
from quaver.benchmarks.serving import OwnCore, Stream, share
from quaver.codecs.loading import load_codec
from quaver.dialogue.loading import DuplexParts, load_duplex
from quaver.dialogue.model import DuplexConfig, DuplexModel
from quaver.dialogue.monologue import PieceVocabulary
from quaver.dialogue.session import DuplexSettings
from quaver.nn.packed import pack_linears

RECIPE = Path(__file__).parent.parent / "recipes/duplex-cpu.yaml"


def random_parts() -> DuplexParts:
    """The recipe's model with random weights, over the bundled codec."""
    recipe = yaml.safe_load(RECIPE.read_text())
    codec, words = load_codec(recipe["options"]["codec"]), PieceVocabulary([f"w{i}" for i in range(500)])
    sizes = {"vocab": codec.frame_spec.vocab, "text_vocab": words.size, "pad": words.pad, "epad": words.epad}
    torch.manual_seed(0)
    model = DuplexModel(DuplexConfig.model_validate({**recipe["model"], **sizes}))
    pack_linears(model)
    pack_linears(codec)
    return DuplexParts(model.eval(), codec, words, DuplexSettings())


def paced(parts: DuplexParts, width: int, seconds: float) -> dict[str, Any]:
    """So many sessions in real time, their frames spread evenly over a frame's time."""
    clock, backend = OwnCore(), EngineBackend("talk", parts)
    engine = Engine({}, lanes={"talk": backend.lane(width)}, slots=width, clock=clock, warm_up=False)
    backend.bind(engine)
    worker = engine.by_hand()
    frame = backend.frame_samples / backend.sample_rate
    links = [backend.open(DuplexRequest(seed=i)) for i in range(width)]
    noise = (0.1 * np.random.default_rng(0).standard_normal(backend.frame_samples)).astype(np.float32)
    for link in links:  # a warm step each
        link.push(noise)
    while worker.turn():
        drain(links)
    drain(links)
    begun, naps, dropped = clock(), 0.0, 0
    count = int(seconds / frame)
    due = [[begun + frame * (k + i / width) for k in range(count)] for i in range(width)]
    sent, got = [0] * width, [0] * width
    delays: list[float] = []
    first, streams = [0.0] * width, [Stream() for _ in links]
    while min(got) < count:
        now = clock()
        for i, link in enumerate(links):
            while sent[i] < count and due[i][sent[i]] <= now:
                dropped += link.push(noise)
                sent[i] += 1
        moved = worker.turn()
        now = clock()
        for i, _ in drain(links):
            delays.append(now - due[i][got[i]])
            first[i] = first[i] if got[i] else delays[-1]
            streams[i].stall = max(streams[i].stall, delays[-1] - first[i])
            got[i] += 1
        if dropped:  # it cannot keep up: frames are lost, and there is no end to wait for
            break
        if not moved:
            wait = min((due[i][sent[i]] for i in range(width) if sent[i] < count), default=now) - now
            clock.nap(max(wait, 1e-4))
            naps += max(wait, 1e-4)
    whole = clock() - begun
    for link in links:
        link.close("client")
    engine.stop()
    ordered = sorted(delays)
    return {
        "sessions": width,
        "frames": len(delays),
        "lost_seconds": dropped / backend.sample_rate,
        "C100": 0.0 if dropped else share(streams, 0.1),
        "on_time": mean(d <= frame for d in delays),
        "delay_ms": {"p50": 1000 * median(ordered), "p99": 1000 * ordered[int(0.99 * (len(ordered) - 1))]},
        "core_share": (whole - naps) / whole,
    }


def tick_costs(parts: DuplexParts, width: int, count: int) -> str:
    """CPU milliseconds of a step: least and median, plain and recorded."""
    batches = [parts.batch(width, recorded=r) for r in (False, True)]
    spent: list[list[float]] = [[], []]
    dice = np.random.default_rng(0)
    for batch in batches:
        for slot in range(width):
            batch.join(slot)
    for _ in range(count + 5):
        noise = (0.1 * dice.standard_normal((width, batches[0].frame_size))).astype(np.float32)
        said = []
        for batch, times in zip(batches, spent, strict=True):
            begun = thread_time()
            said.append(batch.step(dict(enumerate(noise))))
            times.append(1000 * (thread_time() - begun))
        assert all(np.array_equal(said[0][i].audio, said[1][i].audio) for i in range(width))
    plain, recorded = (t[5:] for t in spent)  # the first ones of a recording are slow
    cells = [f"{min(t):.0f} / {median(t):.0f}" for t in (plain, recorded)]
    return f"| {width} | {cells[0]} | {cells[1]} | {median(plain) / median(recorded):.2f} |\n"


def drain(links: list[EngineLink]) -> list[tuple[int, Audio]]:
    found = []
    for i, link in enumerate(links):
        while (event := link.session.get_nowait()) is not None and event is not link.session.outcome:
            if isinstance(event, Audio) and event.seconds:
                found.append((i, event))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="paced conversations on the engine")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--ticks", type=int, default=0, help="steps to measure, instead of conversations")
    parser.add_argument("--model", help="a duplex model's name or folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = load_duplex(options.model) if options.model else random_parts()
    say = sys.stdout.write
    if options.ticks:
        say("| slots | plain ms, least / median | recorded ms, least / median | ratio of medians |\n")
        say("|---:|---:|---:|---:|\n")
        for width in options.sessions:
            say(tick_costs(parts, width, options.ticks))
        return
    say("| sessions | C100 | answered within a frame | delay p50 / p99 ms | lost s | share of a core |\n")
    say("|---:|---:|---:|---:|---:|---:|\n")
    for width in options.sessions:
        row = paced(parts, width, options.seconds)
        delay = row["delay_ms"]
        say(
            f"| {width} | {row['C100']:.2f} | {row['on_time']:.3f} | {delay['p50']:.0f} / {delay['p99']:.0f} "
            f"| {row['lost_seconds']:.1f} | {row['core_share']:.2f} |\n"
        )


if __name__ == "__main__":
    main()
