"""What this machine is, and what it can do at most: bandwidth by size of what is read, and matrix products.

The ceilings are measured with torch's own kernels, on as many threads as the rows use, in CPU time (the wall time of a
shared machine says how crowded it is). They are the best of several attempts: a ceiling is what the machine can do.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = (1, 8, 24, 64, 256)
"""MB of the buffers whose reading is timed: in the second cache, in the third, beyond."""
CACHE = 24
SMALL = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "fma", "f16c")


def describe(root: Path) -> dict[str, Any]:
    """Processor, memory, versions, and the commit that is measured."""
    lines = _read("/proc/cpuinfo").splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(values.get("flags", "").split())
    memory = int(next((x.split()[1] for x in _read("/proc/meminfo").splitlines() if x.startswith("MemTotal")), 0))
    return {
        "cpu": values.get("model name", platform.processor() or "unknown"),
        "cores": os.cpu_count() or 1,
        "flags": [flag for flag in SMALL if flag in flags],
        "cache_mb": _cache() / 2**20,
        "memory_gb": memory / 2**20,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.release()}",
        "commit": _commit(root),
        "load": list(os.getloadavg()),
    }


def ceilings(seconds: float = 0.3) -> dict[str, Any]:
    """`read`: bytes per second by megabytes; `copy`: the same of copies, read and written both counted; `flops`: of a
    product of matrices per second, float32; one thread."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"read": {}, "copy": {}}
    for size in SIZES:
        rows = size * 2**20 // 4 // 1024
        # Filled, not empty: pages that were never written are all one page of zeros.
        held, target = torch.full((rows, 1024), 0.5), torch.full((rows, 1024), 0.25)
        vector = torch.full((1024,), 0.5)
        best = max(_rate(lambda h=held: h.sum(), seconds), _rate(lambda h=held, v=vector: torch.mv(h, v), seconds))
        found["read"][str(size)] = best * held.numel() * 4
        found["copy"][str(size)] = _rate(lambda h=held, t=target: t.copy_(h), seconds) * held.numel() * 8
    square = torch.full((1024, 1024), 0.5)
    found["flops"] = _rate(lambda: square @ square, 3 * seconds) * 2 * 1024**3
    return found


@torch.inference_mode()
def _rate(call: Callable[[], Any], seconds: float) -> float:
    """Calls per CPU second at best; one warms up and one is timed, however short the time."""
    call()
    best, until = float("inf"), time.process_time() + seconds
    while best == float("inf") or time.process_time() < until:
        begun = time.process_time()
        call()
        best = min(best, max(time.process_time() - begun, 1e-9))
    return 1 / best


def _cache() -> int:
    """Bytes of the last-level cache."""
    text = _read("/sys/devices/system/cpu/cpu0/cache/index3/size").strip()
    return int(text[:-1]) * 1024 if text.endswith("K") else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _commit(root: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
