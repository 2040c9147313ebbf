"""One side of a comparison in a process of its own: `python worker.py FILE.py:FUNCTION '{"setting": 1}'`.

The runner (`runner.py`) holds one such process for each side and asks them in turn, so that A and B alternate although
they live in different environments. What goes over the pipes is one JSON object a line:

    worker -> {"ready": {...}} | {"missing": "why"} | {"error": "traceback"}      once, when the side is built
    runner -> {"do": "run"}     worker -> {"wall": s, "cpu": s, ...} | {"error": "traceback"}
    runner -> {"do": "memory"}  worker -> {"peak": bytes, "resident": bytes}
    runner -> {"do": "stop"}, or the end of its pipe: the worker ends

FUNCTION takes the settings as keyword arguments and returns `(call, info)`: `call()` is one repetition, and may return
a dictionary of further figures (`units`: how much it made; `wall` and `cpu` replace what is measured here, for a side
that starts processes of its own). A side whose packages or files are not there raises ImportError or FileNotFoundError.

Only the standard library is imported here: this file runs in peers' environments too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Call = Callable[[], dict[str, Any] | None]


def load(target: str, settings: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Builds the side; its file is loaded by path and needs no package around it."""
    path, _, name = target.rpartition(":")
    spec = importlib.util.spec_from_file_location("_side_" + Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return getattr(module, name)(**settings)


def memory() -> dict[str, int]:
    """Bytes of this process in memory: the most so far, and now. (Linux; zeros elsewhere.)"""
    held = {"VmHWM": 0, "VmRSS": 0}
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in held:
                held[key] = 1024 * int(rest.split()[0])
    except OSError:
        pass
    return {"peak": held["VmHWM"], "resident": held["VmRSS"]}


def repetition(call: Call) -> dict[str, Any]:
    """One repetition and what it took. CPU time is that of all threads of this process."""
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    more = call() or {}
    synchronize()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **more}


def synchronize() -> None:
    """Waits for a GPU, if the side has begun to use one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def one_thread() -> None:
    """As many threads as the runner asks for; here, because packages set numbers of their own when imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def serve(call: Call, requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    for line in requests:
        wanted = json.loads(line)["do"]
        if wanted == "stop":
            return
        try:
            answer(repetition(call) if wanted == "run" else memory())
        except Exception:
            answer({"error": traceback.format_exc()})


def main(target: str, settings: str) -> None:
    # What a package prints must not get between the answers: file descriptor 1 becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Nothing that lies beside this file may be taken for a package of that name.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        call, info = load(target, json.loads(settings))
    except (ImportError, FileNotFoundError) as error:
        answer({"missing": str(error).splitlines()[0] if str(error) else type(error).__name__})
        return
    except Exception:
        answer({"error": traceback.format_exc()})
        return
    one_thread()
    answer({"ready": info})
    serve(call, sys.stdin, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
