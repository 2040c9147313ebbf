"""From nothing to the first sound: a fresh process for every repetition.

CPU time is that of the process until its first samples came (`first_wall`: seconds of a clock), `peak` its memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEXT = "The birch canoe slid on the smooth planks."
HERE = Path(__file__).resolve().parent


def spent(pid: int) -> float:
    """CPU seconds of a living process, its threads included. (Linux.)"""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held(pid: int) -> int:
    """The most memory that it has held, bytes."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def quaver_say(model: str = "default", text: str = TEXT) -> tuple[Any, dict[str, Any]]:
    """`quaver say --stream -o -`: until the first samples come out of its pipe; then it may finish."""
    # The line of the console script.
    command = [sys.executable, "-c", "from quaver.app.cli import main; main()"]
    command += ["say", "--model", model, "--stream", "--raw", "-o", "-", "--quiet", text]

    def call() -> dict[str, Any]:
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            if not os.read(process.stdout.fileno(), 1):
                raise RuntimeError("it said nothing")
            wall, cpu, early = time.perf_counter() - begun, spent(process.pid), held(process.pid)
            while os.read(process.stdout.fileno(), 65_536):
                early = max(early, held(process.pid))
        return {"wall": wall, "cpu": cpu, "peak": early}

    return call, {"imports": slowest_imports(command[0], command[2:])} if model == "default" else {}


@contextmanager
def piped(command: list[str]) -> Iterator[tuple[int, IO[bytes], IO[bytes]]]:
    """A process: its number, its input and its output. It ends with the block, as its input does."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.pid, process.stdin, process.stdout


def torch_alone() -> tuple[Any, dict[str, Any]]:
    """`import torch` and nothing else: what everything that runs on torch begins with."""
    command = [sys.executable, "-c", "import torch; print(1, flush=True); import sys; sys.stdin.read()"]

    def call() -> dict[str, Any]:
        begun = time.perf_counter()
        with piped(command) as (process, _, said):
            said.readline()
            return {"wall": time.perf_counter() - begun, "cpu": spent(process), "peak": held(process)}

    return call, {}


def worker(target: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Another system's side of `speaking.py`, in a fresh process of this environment: until its first samples."""
    command = [sys.executable, str(HERE.parent / "worker.py"), f"{HERE / 'speaking.py'}:{target}", json.dumps(settings)]

    def call() -> dict[str, Any]:
        begun = time.perf_counter()
        with piped(command) as (process, told, said):
            ready = json.loads(said.readline())
            if "ready" not in ready:
                raise FileNotFoundError(str(ready.get("missing") or ready.get("error")))
            wall, cpu = time.perf_counter() - begun, spent(process)
            told.write(b'{"do": "run"}\n')
            told.flush()
            answer = json.loads(said.readline())
            peak = held(process)
        return {"wall": wall + answer["first_wall"] / 1000, "cpu": cpu + answer["first_cpu"] / 1000, "peak": peak}

    call()  # so that a side that is not installed says so when it is built
    return call, {}


def slowest_imports(python: str, arguments: list[str], count: int = 10) -> list[tuple[str, float]]:
    """`-X importtime` of a whole `quaver say`: (module, milliseconds of itself), the dearest first."""
    done = subprocess.run([python, "-X", "importtime", "-c", *arguments], capture_output=True, check=True)
    found = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr.decode(errors="replace"))
    slow = sorted(((name, int(micro) / 1000) for micro, name in found), key=lambda item: -item[1])
    return slow[:count]
