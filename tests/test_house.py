"""The house rules that a machine can check: lint, types, floors, packaging, and silence at import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ["nn", "codecs", "tts", "dialogue", "app", "training", "evaluation"]
LIBRARY = [
    ROOT / "__init__.py",
    ROOT / "errors.py",
    *(p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))),
]
MODULES = [".".join(["quaver", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__") for p in LIBRARY]


def tool(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
        env=os.environ | environment,
    )


def test_ruff_finds_nothing() -> None:
    result = tool("-m", "ruff", "check", "--output-format=concise", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_code_is_formatted() -> None:
    result = tool("-m", "ruff", "format", "--check", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_pyright_finds_no_error() -> None:
    # Tests and benchmarks say `import quaver`, which an editable install resolves by a hook that pyright does not run.
    link = ROOT / ".venv" / "src" / "quaver"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT)
    result = tool("-m", "pyright", "--pythonpath", sys.executable)
    assert result.returncode == 0, result.stdout + result.stderr


def test_floors_import_only_floors_below() -> None:
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.argv[1:] = ['--no-cache']; run()"
    result = tool("-c", code)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("name", ["corpus", "dialogues", "eval", "eval_duplex", "train"])
def test_commands_that_reach_up_do_so_inside_functions(name: str) -> None:
    tree = ast.parse((ROOT / "app" / "commands" / f"{name}.py").read_text())
    for node in tree.body:
        for name_ in _imported(node):
            assert not re.search(r"\b(training|evaluation)\b", name_), f"{name}.py imports {name_} at import time"


def test_nothing_happens_at_import() -> None:
    """Every module, in one fresh process: no thread, no seed, no environment, no output, no network, no file."""
    code = """
import os, sys, threading, random, socket
import rich.progress, torch, numpy, transformers.utils, pydantic, typer, soundfile, soxr, safetensors.torch, accelerate
def refuse(*a, **k): raise AssertionError("network at import")
socket.socket.connect = refuse
before = (dict(os.environ), threading.active_count(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
    random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_default_dtype(), torch.is_grad_enabled(),
    torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
after = (dict(os.environ), threading.active_count(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
    random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_default_dtype(), torch.is_grad_enabled(),
    torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
for number, (a, b) in enumerate(zip(before, after)):
    assert a == b, f"importing quaver changed item {number} of the process"
"""
    result = tool("-W", "ignore", "-c", code, *MODULES)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""


def test_the_package_alone_is_light() -> None:
    result = tool(
        "-c", "import quaver, sys; print([m for m in ('torch', 'numpy', 'typer', 'rich') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_every_room_says_what_lives_in_it_and_is_packaged() -> None:
    packaged = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {p.parent for p in LIBRARY}
    assert packaged == {".".join(["quaver", *f.relative_to(ROOT).parts]) for f in folders}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, f"{folder.relative_to(ROOT)}/__init__.py says nothing"
        assert len(docstring) > 20


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_two_ideas_and_nothing_unsafe_is_loaded(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500, f"{path.name} has more than 500 lines"
    for node in ast.walk(ast.parse(text)):
        for name in _imported(node):
            assert name.split(".")[0] not in ("pickle", "dill", "shelve", "marshal", "codecs", "quaver"), name
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "print", "yaml.load", "os.system"), called
            trusted = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
            assert not any(not isinstance(v, ast.Constant) or v.value is not False for v in trusted)
            shell = [k for k in node.keywords if k.arg == "shell" and ast.unparse(k.value) != "False"]
            assert not shell, f"shell=True in {path.name}"


def test_extras_and_constraints_are_consistent() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    everything = re.fullmatch(r"quaver\[(.*)\]", extras["all"][0])
    assert everything
    assert set(everything[1].split(",")) == set(extras) - {"all"}
    pins = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert set(pins) == {"torch", "torchaudio"}
    assert pins["torch"] == pins["torchaudio"]


def test_make_hands_text_over_as_it_is(tmp_path: Path) -> None:
    """Quotes, dollars and backticks in TEXT are text, not shell."""
    text = """it's "$HOME" `id` $(id) \\ ; # *"""
    fake = tmp_path / "venv" / "bin"
    fake.mkdir(parents=True)
    for name in ("python", "quaver"):
        (fake / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/{name}.args"\n')
        (fake / name).chmod(0o755)
    (tmp_path / "venv" / ".core").touch()
    subprocess.run(["make", "-s", "say", f"TEXT={text}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "quaver.args").read_text() == f"say\n--\n{text}\n"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module or ""]
    if isinstance(node, ast.ImportFrom):
        return ["." + (node.module or "")]
    return []
