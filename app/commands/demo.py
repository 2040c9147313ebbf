"""`quaver demo`: the web demo, in a server of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import MissingExtra
from ..models import bundled
from .options import DELTA, DRAFT, DRAFT_LENGTH, SPECULATE


def demo(
    host: Annotated[str | None, typer.Option("--host", help="Address of this machine (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port (default: 8600; 0: any).")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Bundled model or folder; may be repeated (default: what is bundled)."),
    ] = None,
    codec: Annotated[
        list[str] | None, typer.Option("--codec", help="Bundled codec or folder for the codec lab; may be repeated.")
    ] = None,
    editor: Annotated[
        list[str] | None,
        typer.Option("--editor", help="Model that fills gaps (ardit), for Edit; may be repeated."),
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", help="Sessions that speak at once (default: 2).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of the engine (default: 1).")] = None,
    voices: Annotated[Path | None, typer.Option("--voices", help="Folder of the voices that are made.")] = None,
    speculate: SPECULATE = "off",
    draft: DRAFT = None,
    draft_length: DRAFT_LENGTH = "3",
    delta: DELTA = 0.1,
) -> None:
    """Open the web demo: everything that `quaver serve` answers, and a page to try it with. Ctrl-C ends it."""
    from ..speculation import Speculating

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "models": tuple(model) if model else None,
        "slots": slots or 2,
        "threads": threads,
        "voices": voices,
        "log_format": "text",
        "speculation": Speculating(rule=speculate, draft=draft, length=draft_length, delta=delta),
    }
    try:
        from ..demo.edit_lab import EditLab
        from ..demo.mount import add_demo
        from ..demo.speculating import count_drafts
        from ..server.run import run
        from ..server.settings import config_folder, read_settings
    except ImportError as error:
        raise MissingExtra(f"`quaver demo` needs {error.name}: pip install 'quaver[serve,demo]'") from None
    # The demo is open to this machine alone: the keys of `quaver serve` are not its own.
    settings = read_settings(None, **flags, keys=config_folder() / "demo-keys.json")

    if not settings.model_fields_set & {"models"}:  # a voice to speak, and whoever there is to talk with
        talking = tuple(its.name for its in bundled("duplex"))
        settings = settings.model_copy(update={"models": (*settings.models, *talking)})

    codecs, editors = tuple(codec) if codec else None, EditLab(tuple(editor) if editor else None)
    run(settings, prepare=count_drafts, extend=lambda app: add_demo(app, settings, codecs, editors))
