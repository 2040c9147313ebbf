"""The `quaver` command. Sub-commands live in app/commands; nothing heavy is imported before one of them runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ..errors import QuaverError
from .commands import (
    batch,
    bench,
    chat,
    codec,
    corpus,
    demo,
    dialogues,
    edit,
    eval_duplex,
    eval_edit,
    eval_tts,
    groups,
    say,
    serve,
    train,
    voice,
)
from .commands import eval as evaluation

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="quaver",
    help="Text and audio into speech tokens, speech tokens into speech, as a stream.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("say")(say.say)
app.command("voices")(say.voices)
app.command("batch")(batch.batch)
app.add_typer(voice.app, name="voice")
app.command("convert")(voice.convert)
app.command("edit")(edit.edit)
app.add_typer(codec.app, name="codec")
app.add_typer(corpus.app, name="corpus")
app.add_typer(groups.app, name="groups")
app.add_typer(serve.app, name="serve")
app.add_typer(evaluation.app, name="eval")
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)
app.command("bench", context_settings=bench.PASSED)(bench.bench)
corpus.app.command("dialogues")(dialogues.dialogues)
evaluation.app.command("duplex")(eval_duplex.duplex)
evaluation.app.command("edit")(eval_edit.edit)
evaluation.app.command("table")(eval_tts.table)
evaluation.app.command("words")(eval_tts.words)
evaluation.app.command("speakers")(eval_tts.speakers)
evaluation.app.command("zero-shot")(eval_tts.zero_shot)
app.command("train")(train.train)
app.command("export")(train.export)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"quaver {version('quaver')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the line).")
    ] = False,
) -> None:
    """Text and audio into speech tokens, speech tokens into speech, as a stream."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input (one line on stderr), 130 interrupted, 1 a bug (traceback)."""
    debug, arguments = _take_debug(sys.argv[1:] if arguments is None else arguments)
    interrupted = _Interruption()
    try:
        result = app(arguments, prog_name="quaver", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BrokenPipeError:
        _forget_stdout()
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if interrupted.seen:  # a signal in the middle of an import comes out as the import's own error
            code = INTERRUPTED
        elif debug:
            raise
        else:
            code = _explain(error)
    interrupted.over = True
    sys.exit(code)


def _explain(error: Exception) -> int:
    """One line on stderr for an error that the user can mend; anything else is a bug and goes on."""
    usage: Any = error
    if type(error).__name__ == "NoArgsIsHelpError":
        usage.show()
        return BAD_INPUT
    if isinstance(error, QuaverError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "out of memory"
    elif hasattr(error, "format_message"):  # click's usage errors, wherever this typer keeps them
        context = getattr(error, "ctx", None)
        text = f"{usage.format_message()} (see `{context.command_path if context else 'quaver'} --help`)"
    else:
        raise error
    sys.stderr.write(f"quaver: error: {' '.join(text.split())}\n")
    return BAD_INPUT


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """`--debug` counts wherever it stands before "--"; click alone would take it only before the sub-command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    return len(kept) < end, kept + arguments[end:]


class _Interruption:
    """Turns Ctrl-C and SIGTERM into KeyboardInterrupt, and remembers that one came. A process that ignores Ctrl-C (in
    the background of a shell) goes on ignoring it."""

    def __init__(self) -> None:
        self.seen = self.over = False
        signal.signal(signal.SIGTERM, self._come)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._come)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable

    def _unraisable(self, lost: Any) -> None:
        """A signal may come within a destructor or a callback, where Python can only report the exception and go on:
        it comes once more, a moment later."""
        if lost.exc_type is not KeyboardInterrupt:
            self._hook(lost)
            return
        again = threading.Timer(0.05, self._repeat)
        again.daemon = True
        with suppress(RuntimeError):  # at the very end no thread can start, and nothing is left to stop
            again.start()

    def _repeat(self) -> None:
        if not self.over:
            os.kill(os.getpid(), signal.SIGTERM)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _forget_stdout() -> None:
    """The reader has gone: give Python something to flush into when it shuts down."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
