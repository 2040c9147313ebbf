"""`quaver serve`: the streaming server. `quaver serve keys`: who may use it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import MissingExtra
from .options import DELTA, DRAFT, DRAFT_LENGTH, SPECULATE

app = typer.Typer(help="Serve speech over HTTP and WebSockets.", invoke_without_command=True)
keys = typer.Typer(help="API keys: without one the server binds to loopback only.", no_args_is_help=True)
app.add_typer(keys, name="keys")

_KEYS = typer.Option("--keys", help="File of hashed API keys (default: ~/.config/quaver/keys.json).")


@app.callback()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind to (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port (default: 8600; 0: any).")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Bundled model or folder; may be repeated, the first answers.")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", help="Sessions that speak at once (default: 8).")] = None,
    waiting: Annotated[int | None, typer.Option("--waiting", help="Requests that may wait (default: 16).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of the engine (default: 1).")] = None,
    keys_file: Annotated[Path | None, _KEYS] = None,
    voices: Annotated[Path | None, typer.Option("--voices", help="Folder of the voices that clients add.")] = None,
    origin: Annotated[
        list[str] | None, typer.Option("--origin", help="Web origin that may use the server; may be repeated.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-certificate", help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file.")] = None,
    drain: Annotated[float | None, typer.Option("--drain", help="Seconds for accepted work after SIGTERM.")] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="json or text.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    tracing: Annotated[bool | None, typer.Option("--tracing", help="OpenTelemetry spans.")] = None,
    speculate: SPECULATE = "off",
    draft: DRAFT = None,
    draft_length: DRAFT_LENGTH = "3",
    delta: DELTA = 0.1,
    demo: Annotated[bool, typer.Option("--demo", help="With the web demo, at /demo (loopback only).")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of settings; limits are set there.")
    ] = None,
) -> None:
    """Serve until SIGTERM. Settings come from these options, then QUAVER_* variables, then the file."""
    if context.invoked_subcommand is not None:
        return
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "models": tuple(model) if model else None,
        "slots": slots,
        "waiting": waiting,
        "threads": threads,
        "keys": keys_file,
        "voices": voices,
        "origins": tuple(origin) if origin else None,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "drain_seconds": drain,
        "log_format": log_format,
        "log_level": log_level,
        "tracing": tracing,
    }
    if speculate != "off":
        from ..speculation import Speculating

        flags["speculation"] = Speculating(rule=speculate, draft=draft, length=draft_length, delta=delta)
    try:
        from ..server.run import run
        from ..server.settings import read_settings
    except ImportError as error:
        raise MissingExtra(f"`quaver serve` needs {error.name}: pip install 'quaver[serve]'") from None
    settings = read_settings(config, **flags)
    if not demo:
        run(settings)
        return
    from ..demo.mount import add_demo

    run(settings, extend=lambda app: add_demo(app, settings))


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits, dot, dash, underscore.")],
    file: Annotated[Path | None, _KEYS] = None,
    rate: Annotated[int | None, typer.Option("--rate", min=1, help="Requests a minute, instead of the limit.")] = None,
) -> None:
    """Make a key. It is shown this once; the file holds its hash."""
    typer.echo(_store(file).add(name, rate))


@keys.command("list")
def list_keys(file: Annotated[Path | None, _KEYS] = None) -> None:
    """Show the names of all keys."""
    for key in _store(file).keys():  # noqa: SIM118 (it is no dictionary)
        made = time.strftime("%Y-%m-%d", time.gmtime(key.created))
        rate = f"\t{key.requests_per_minute} requests a minute" if key.requests_per_minute else ""
        typer.echo(f"{key.name}\tmade {made}{rate}")


@keys.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="A name that `keys list` shows.")],
    file: Annotated[Path | None, _KEYS] = None,
) -> None:
    """Remove a key; a running server refuses it from then on."""
    _store(file).revoke(name)


def _store(file: Path | None) -> Any:
    try:
        from ..server.auth import KeyStore
        from ..server.settings import read_settings
    except ImportError as error:
        raise MissingExtra(f"API keys need {error.name}: pip install 'quaver[serve]'") from None
    return KeyStore(read_settings(keys=file).keys)
