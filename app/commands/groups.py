"""`quaver groups build`: which speech tokens of a model sound alike (for `quaver say --speculate pcg`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import BadInput, ConfigError, MissingFile
from ..files import check_writable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...tts.groups import Groups

app = typer.Typer(no_args_is_help=True, help="Groups of speech tokens that sound alike, for speculation.")


@app.callback()
def _group() -> None:
    """Groups of speech tokens that sound alike, for speculation."""


@app.command("build")
def build(
    model: Annotated[str, typer.Argument(help="Bundled model, or a folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="By default groups.safetensors in the model's folder.")
    ] = None,
    size: Annotated[float, typer.Option("--size", help="Wanted mean size of a token's group.")] = 8.0,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="One cosine for all codebooks instead of a size.")
    ] = None,
    partition: Annotated[bool, typer.Option("--partition", help="Groups that do not overlap.")] = False,
    pack: Annotated[
        list[Path] | None, typer.Option("--pack", help="Packs of speech; only ids that occur in them are grouped.")
    ] = None,
    codes: Annotated[
        str | None, typer.Option("--codes", help="Token track of the packs; by default the model's.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture of the sizes (.png).")] = None,
) -> None:
    """Group the tokens of a model by the likeness of their embeddings; writes a groups file and a report."""
    from ...codecs.loading import model_folder, read_config
    from ...tts.groups import build_groups, code_embeddings, save_groups, weights_hash

    folder = model_folder(model)
    target = output or folder / "groups.safetensors"
    check_writable(str(target))
    if plot is not None:
        check_writable(str(plot))
    head = _head(folder)
    tables = code_embeddings(head)
    live = None
    if pack:
        track = codes or str(read_config(folder).get("codec"))
        live = [_occurs(pack, track, len(tables), level, len(table)) for level, table in enumerate(tables)]
    groups = build_groups(
        tables,
        size,
        threshold=threshold,
        live=live,
        control=int(getattr(head, "stops", 0)),
        partition=partition,
    )
    save_groups(groups, target, weights_hash(folder))
    rows = groups.report()
    report = target.with_suffix(".json")
    report.write_text(json.dumps({"model": model, "partition": partition, "codebooks": rows}, indent=1) + "\n")
    for row in rows:
        typer.echo(
            f"codebook {row['codebook']}: cosine {row['threshold']:.3f}, {row['groups']} groups of {row['live']} live "
            f"ids, mean {row['mean']:.1f}, largest {row['largest']:.0f}, alone {100 * row['alone']:.0f} %",
            err=True,
        )
    if plot is not None:
        _plot(groups, plot)
    typer.echo(str(target))


def _head(folder: Path) -> nn.Module:
    from ...codecs.loading import read_config
    from ...tts.synthesizer import load_lm
    from ...tts.token_lm import load_token_lm

    kind = read_config(folder).get("kind")
    if kind == "lm":
        return load_lm(str(folder))[0].head
    if kind == "token_lm":
        return load_token_lm(str(folder))[0].head
    raise ConfigError(f"{folder} is a {kind}; groups are built for a speech language model (lm or token_lm)")


def _occurs(packs: list[Path], track: str, codebooks: int, level: int, vocab: int) -> Tensor:
    """Which ids of a codebook occur in the packs: BoolTensor[vocab]."""
    import numpy as np
    import torch

    seen = np.zeros(vocab, bool)
    for folder in packs:
        path = folder / f"codes.{track}.u16"
        if not path.exists():
            raise MissingFile(f"{path} is missing; make it with `quaver corpus codes {folder} --codec {track}`")
        used = np.unique(np.fromfile(path, np.uint16).reshape(-1, codebooks)[:, level])
        if len(used) and int(used.max()) >= vocab:
            raise BadInput(
                f"{path} has code {int(used.max())}, the model only {vocab}; name its own track with --codes"
            )
        seen[used] = True
    return torch.from_numpy(seen)


def _plot(groups: Groups, path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        from ...errors import MissingExtra

        raise MissingExtra("plots need matplotlib: pip install 'quaver[eval]'") from None
    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for level, channel in enumerate(groups.channels):
        sizes = channel.sizes.sort(descending=True).values
        axes.plot(range(1, len(sizes) + 1), sizes, label=f"codebook {level} (cosine {groups.thresholds[level]:.2f})")
    axes.set(xscale="log", yscale="log", xlabel="group, by size", ylabel="tokens in it", title="Sizes of the groups")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
