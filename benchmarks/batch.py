"""A whole job against its engine: `python benchmarks/batch.py --texts FILE --rows 500 --workers 2`.

Both are counted in seconds of speech per second of CPU time, so that a busy machine spoils the ratio little:

- engine: `SpeechBatch` with a job's slots and chunks, every slot always taken, in this process;
- job: `quaver batch` as a command, with everything that it and its processes do: start, imports, models, front end,
  encoding, journal, the slots that run empty at the end, the manifest.

`--memory ROWS` instead speaks so many short rows in one process and prints its resident memory as it goes; with
`--tiny`, by a voice of random weights through the same machinery, for a machine on which the bundled one takes hours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quaver.app.batch.names import Names
from quaver.app.batch.rows import read_rows
from quaver.app.batch.run import Job, local, run_job
from quaver.app.batch.speech import CHUNKS, SLOTS, SpeechWork
from quaver.codecs.native import XCodec, XCodecConfig
from quaver.tts.lm import SpeechLM, SpeechLMConfig
from quaver.tts.script import Script
from quaver.tts.synthesizer import Synthesizer


def engine(texts: list[str], seconds: float) -> float:
    """Speech per CPU second with every slot taken."""
    synthesizer = Synthesizer.load()
    batch, wanted = synthesizer.batch(SLOTS, CHUNKS), cycle(enumerate(texts))
    samples, begun, warm = 0, time.thread_time(), True
    while (spent := time.thread_time() - begun) < seconds or warm:
        if warm and spent > 2.0:  # slots fall into step in the first moments
            warm, samples, begun = False, 0, time.thread_time()
        for slot in range(SLOTS):
            if batch.done(slot):
                batch.leave(slot)
            if batch.answers[slot] is None:
                seed, text = next(wanted)
                batch.join(slot, Script(synthesizer.frontend, text), synthesizer.settings_of(seed=seed))
        samples += sum(len(chunk.samples) for chunks in batch.tick().values() for chunk in chunks)
    return samples / synthesizer.sample_rate / (time.thread_time() - begun)


def job(source: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Seconds of speech, CPU seconds of all processes, wall seconds."""
    command = "from quaver.app.cli import main; main()"
    adopt = 36  # PR_SET_CHILD_SUBREAPER: processes that outlive the command are waited for here, so their time counts
    ctypes.CDLL(None).prctl(adopt, 1, 0, 0, 0)
    options = ["batch", str(source), "-o", str(out), "-w", str(workers), "-q"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-c", command, *options], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall = time.monotonic() - begun
    with suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return sum(row["seconds"] for row in rows), cpu, wall


def write(path: Path, texts: list[str], rows: int) -> Path:
    lines = (json.dumps({"id": f"r{i}", "text": text}) for i, text in enumerate(islice(cycle(texts), rows)))
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny(folder: Path) -> str:
    """A voice of random weights with its codec, which babbles a tenth of a second a phone."""
    sizes: dict[str, Any] = {"codebooks": 3, "vocab": 12}
    blocks: dict[str, Any] = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "semantic": "none"}
    codec: dict[str, Any] = {**sizes, **blocks, "mels": 8, "width": 8, "hidden": 8, "dim": 4}
    backbone = {"width": 8, "layers": 1, "heads": 2, "hidden": 12, "window": 40, "slack": 4}
    lm: dict[str, Any] = {**sizes, "head_hidden": 8, "backbone": backbone, "phone_blocks": 2, "phone_hidden": 8}
    lm["voices"] = ["one"]
    torch.manual_seed(0)
    parts: dict[str, tuple[torch.nn.Module, dict[str, Any]]] = {
        "codec": (XCodec(XCodecConfig(**codec)), {"kind": "codec", **codec}),
        "voice": (SpeechLM(SpeechLMConfig.model_validate(lm)), {"kind": "lm", "codec": "codec", **lm}),
    }
    for name, (module, config) in parts.items():
        (folder / name).mkdir()
        save_file(module.state_dict(), folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    return str(folder / "voice")


def memory(rows: int, folder: Path, work: SpeechWork) -> None:
    """Resident memory of one process over a job of short rows."""
    texts = ["No.", "Yes.", "Go on.", "Why not?", "Well."]
    source = write(folder / "in.jsonl", texts, rows)
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 1
        if done % max(1, rows // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sys.stdout.write(f"{done} rows: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.1f} MiB\n")
            sys.stdout.flush()

    out = folder / "out"
    run_job(Job(lambda: read_rows(source), out, work, Names("{shard}/{name}", ".wav", 1000)), local(1), tick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, help="Sentences, one a line.")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="CPU seconds of the engine, before and after.")
    parser.add_argument("--memory", type=int, default=0, metavar="ROWS")
    parser.add_argument("--tiny", action="store_true", help="With --memory: a voice of random weights, 64 slots.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            work = SpeechWork(model=tiny(Path(folder)), slots=64) if options.tiny else SpeechWork()
            memory(options.memory, Path(folder), work)
            return
        texts = [line.strip() for line in options.texts.read_text().splitlines() if line.strip()]
        first = engine(texts, options.seconds)
        source = write(Path(folder) / "in.jsonl", texts, options.rows)
        speech, cpu, wall = job(source, Path(folder) / "out", options.workers)
        second = engine(texts, options.seconds)
    mean = (first + second) / 2
    sys.stdout.write(f"engine: {first:.2f} before, {second:.2f} after, speech per CPU second\n")
    sys.stdout.write(f"job: {speech:.0f} s of speech, {cpu:.1f} CPU s, {wall:.1f} s: {speech / cpu:.2f}\n")
    sys.stdout.write(f"ratio: {speech / cpu / mean:.2f}\n")


if __name__ == "__main__":
    main()
