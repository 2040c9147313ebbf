"""What a run found: JSON with every row, a Markdown table, a PNG plot."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..app.files import replacing
from ..errors import BadInput, CorruptFile
from .estimate import Estimate
from .metrics import METRICS, Metric

__all__ = ["Report", "System", "environment", "mean_system"]

FORMAT = 1
_PACKAGES = (
    "quaver", "torch", "numpy", "transformers", "faster-whisper", "ctranslate2", "jiwer", "pesq", "pystoi",
    "resemblyzer", "speechmos", "distillmos", "onnxruntime", "pyworld",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One line of the table: a voice, a codec, the original.

    Attributes:
        summary: metric name -> figure.
        rows: one dictionary per recording.
        worst: the sentences with most word errors.
        extra: further findings (length scaling, codebook use, ...).
    """

    name: str
    voice: str = ""
    summary: Mapping[str, Estimate] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    worst: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} / {self.voice}" if self.voice else self.name

    def summarised(self, metrics: Mapping[str, Metric]) -> System:
        """The same with a figure for each metric that some row has."""
        found = {name: metric.summarise(self.rows) for name, metric in metrics.items()}
        return replace(self, summary={name: figure for name, figure in found.items() if figure is not None})


def mean_system(systems: Sequence[System], metrics: Mapping[str, Metric]) -> System:
    """One system of all rows together: with as many sentences for each voice, the mean over voices."""
    rows = [row for system in systems for row in system.rows]
    names = {system.name for system in systems}
    name = names.pop() if len(names) == 1 else "all"
    # The rows stand in the report once, with their voice.
    return replace(System(name, voice="mean", rows=rows).summarised(metrics), rows=())


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        kind: `tts` or `codec`.
        settings: what was asked for.
        notes: metric -> why its column is empty.
        environment: machine, versions, commit, time.
        judge_seconds: judge -> seconds it took.
    """

    kind: str
    systems: Sequence[System]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    judge_seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Everything, as JSON; figures that are not finite become null."""
        return json.dumps(_finite({"format": FORMAT, **asdict(self)}), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that `to_json` wrote. Raises CorruptFile if it is none."""
        try:
            raw = json.loads(text)
            if raw.pop("format") != FORMAT:
                raise CorruptFile(f"the report has another format than {FORMAT}; run the evaluation again")
            systems = [
                System(**{**one, "summary": {name: Estimate(**e) for name, e in one["summary"].items()}})
                for one in raw.pop("systems")
            ]
            return Report(systems=systems, **raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CorruptFile):
                raise
            raise CorruptFile(f"this is no quaver report ({error}); run the evaluation again") from None

    def columns(self) -> list[Metric]:
        """Metrics that some system has a figure for, in table order."""
        return [m for name, m in METRICS.items() if any(name in system.summary for system in self.systems)]

    def markdown(self) -> str:
        """The table, then what is missing and why, then the findings that are no columns, then the worst sentences."""
        from .findings import codec_findings, length_findings, worst_sentences

        columns = self.columns()
        lines = [
            "| | " + " | ".join(_heading(metric) for metric in columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for system in self.systems:
            cells = (_cell(metric, system.summary.get(metric.name)) for metric in columns)
            lines.append(f"| {system.label} | " + " | ".join(cells) + " |")
        found = [*codec_findings(self), *length_findings(self)]
        sections = ["\n".join(lines), self._notes(), *found, worst_sentences(self)]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _notes(self) -> str:
        lines = [f"- {METRICS[name].title}: {_strip(note, METRICS[name].title)}" for name, note in self.notes.items()]
        skipped = sum(len(row.get("problems", ())) for system in self.systems for row in system.rows)
        if skipped:
            lines.append(f"- {skipped} single scores could not be given; the JSON says which and why")
        return "Not measured:\n\n" + "\n".join(lines) if lines else ""

    def write(self, out: Path) -> dict[str, Path]:
        """Writes JSON, Markdown and PNG: into the folder `out`, or beside `out` if it ends in .json, .md or .png.

        Returns kind -> path. The PNG is left out where matplotlib is not installed. Raises MissingFile, BadInput.
        """
        if out.suffix in (".json", ".md", ".png"):
            folder, stem = out.parent, out.stem
        elif out.suffix:
            raise BadInput(f"{out}: name a folder, or a file that ends in .json, .md or .png")
        else:
            folder, stem = out, f"eval-{self.kind}"
            folder.mkdir(parents=True, exist_ok=True)
        contents = {"json": self.to_json().encode(), "md": self.markdown().encode(), "png": self._plot()}
        paths = {kind: folder / f"{stem}.{kind}" for kind, data in contents.items() if data}
        for kind, path in paths.items():
            with replacing(path) as file:
                file.write(contents[kind])
        return paths

    def _plot(self) -> bytes:
        from .judges import installed
        from .plot import draw

        if not installed("matplotlib") or not self.columns():
            return b""
        buffer = io.BytesIO()
        draw(self, buffer)
        return buffer.getvalue()


def environment() -> dict[str, Any]:
    """Machine, versions, commit and time of a run."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.platform(),
            "python": platform.python_version(), "load": [round(x, 2) for x in os.getloadavg()],
        },
        "versions": dict(_versions(_PACKAGES)),
    }  # fmt: skip


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _commit() -> str | None:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _heading(metric: Metric) -> str:
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    return f"{metric.title}{f' {metric.unit}' if metric.unit else ''}{arrow}"


def _cell(metric: Metric, figure: Estimate | None) -> str:
    if figure is None:
        return "–"
    text = f"{figure.value:.{metric.digits}f}"
    # An interval where it decides: error rates on a hundred sentences.
    if metric.unit == "%" and figure.low is not None and figure.high is not None and "asr" in metric.needs:
        text += f" ({figure.low:.{metric.digits}f}–{figure.high:.{metric.digits}f})"
    return text


def _strip(note: str, title: str) -> str:
    return note.removeprefix(f"{title}: ")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
