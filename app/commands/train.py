"""`quaver train` and `quaver export`: a recipe into a run (one thread, processes, or a GPU), a run into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import BadInput
from ..files import check_readable


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe file, such as recipes/codec-24k.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/<recipe>.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", "--no-resume", help="Start anew instead of resuming the run in that folder.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", "-p", help="Data-parallel processes of one thread.")] = 1,
) -> None:
    """Train a recipe; a run that was stopped goes on where it was."""
    check_readable(recipe, "recipe")
    for override in overrides or []:
        if "=" not in override:
            raise BadInput(f"{override!r} is no setting; write section.key=value")
    if processes < 1:
        raise BadInput(f"--processes must be at least 1, not {processes}")
    from ...training.run import train as run

    run(recipe, out or Path("runs") / recipe.stem, list(overrides or []), resume=not fresh, processes=processes)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/quaver-24k.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the model, such as models/quaver-24k.")],
    weights: Annotated[str, typer.Option("--weights", help="Matrices as int8, float16 or float32.")] = "int8",
    inference_only: Annotated[
        bool, typer.Option("--inference-only", help="Leave out what only a codec's losses use.")
    ] = False,
) -> None:
    """Make a small model folder of a training run: config.json, model.safetensors, card.json."""
    from ...training.export import export as write

    policy: Any = weights  # `write` says which there are
    card = write(run, folder, weights=policy, inference_only=inference_only)
    size, parameters = card["bytes"] / 1e6, card["parameters"] / 1e6
    typer.echo(f"{folder}: {parameters:.2f} M parameters in {size:.2f} MB, sha256 {card['sha256'][:12]}", err=True)
