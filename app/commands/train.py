"""`quaver train` and `quaver export`: a recipe into a run (one thread, processes, or a GPU), a run into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import BadInput
from ..files import check_readable


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file, such as recipes/codec-24k.yaml.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: section.key=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/<recipe>.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", "--no-resume", help="Start anew instead of resuming the run in that folder.")
    ] = False,
    processes: Annotated[int, typer.Option("--processes", "-p", help="Data-parallel processes of one thread.")] = 1,
    model: Annotated[
        str | None, typer.Option("--from", help="Instead of a recipe: fine-tune this voice model on --data.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of name.wav + name.txt pairs of one speaker.")
    ] = None,
    voice: Annotated[
        str | None, typer.Option("--voice", help="Name of the new voice; by default the folder's.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", help="Train low-rank changes of this rank instead of every weight.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Of fine-tuning, at most.")] = 400,
) -> None:
    """Train a recipe (a run that was stopped goes on where it was), or fine-tune a voice on your own recordings."""
    if model is not None or data is not None:
        if recipe is not None or model is None or data is None:
            raise BadInput("give a recipe, or both --from MODEL and --data FOLDER")
        _finetune(model, data, out, voice, lora, steps)
        return
    if recipe is None:
        raise BadInput("say what to train: a recipe (`ls recipes/`), or --from MODEL --data FOLDER")
    check_readable(recipe, "recipe")
    for override in overrides or []:
        if "=" not in override:
            raise BadInput(f"{override!r} is no setting; write section.key=value")
    if processes < 1:
        raise BadInput(f"--processes must be at least 1, not {processes}")
    from ...training.run import train as run

    run(recipe, out or Path("runs") / recipe.stem, list(overrides or []), resume=not fresh, processes=processes)


def _finetune(model: str, data: Path, out: Path | None, voice: str | None, lora: int | None, steps: int) -> None:
    from ...training.finetune import FineTuning, finetune
    from ..runtime import use_threads

    use_threads(1)
    name = voice or data.resolve().name
    out = out or Path("runs") / name
    tuned = finetune(model, data, out, FineTuning(voice=name, lora=lora, steps=steps))
    if tuned.recordings.left_out:
        typer.echo(f"left out: {tuned.recordings.reasons()}", err=True)
    typer.echo(str(out))
    typer.echo(
        f"{tuned.trained_on} utterances, {tuned.held_out} held out; their loss {tuned.before:.3f} -> {tuned.after:.3f} "
        f'(step {tuned.best_step} of {tuned.steps}); try: quaver say "Hello." --model {out}',
        err=True,
    )


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/quaver-24k.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the model, such as models/quaver-24k.")],
    weights: Annotated[str, typer.Option("--weights", help="Matrices as int8, float16 or float32.")] = "int8",
    inference_only: Annotated[
        bool, typer.Option("--inference-only", help="Leave out what only a codec's losses use.")
    ] = False,
    modulation_rank: Annotated[
        int | None, typer.Option("--modulation-rank", min=1, help="Of an ARDiT: smaller matrices, of this rank.")
    ] = None,
) -> None:
    """Make a small model folder of a training run: config.json, model.safetensors, card.json."""
    from ...training.export import export as write

    policy: Any = weights  # `write` says which there are
    card = write(run, folder, weights=policy, inference_only=inference_only, modulation_rank=modulation_rank)
    size, parameters = card["bytes"] / 1e6, card["parameters"] / 1e6
    typer.echo(f"{folder}: {parameters:.2f} M parameters in {size:.2f} MB, sha256 {card['sha256'][:12]}", err=True)
