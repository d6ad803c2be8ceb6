"""Running a typer application as a program: every error is a sentence and an exit code."""

from __future__ import annotations

import os
import sys

import typer
from typer.exceptions import TyperException

from bpfilter.errors import BpfilterError, UsageError
from bpfilter.report.terminal import terminal

STOPPED = 130
"""Exit code after Ctrl-C, as shells give it (128 + SIGINT)."""


def run_app(app: typer.Typer, name: str, arguments: list[str] | None = None) -> int:
    """Run an application and return its exit code; never lets a traceback reach a user.

    A command's own exit code is what it returns or raises as `typer.Exit`; else 0.
    """
    errors = terminal(stderr=True)
    try:
        code = typer.main.get_command(app).main(arguments, prog_name=name, standalone_mode=False)
    except TyperException as error:
        # typer's own code for a wrong command line is 2, which is ours for a refused ruleset.
        show = getattr(error, "show", None)
        show() if callable(show) else errors.print(str(error), markup=False)
        return UsageError.exit_code if error.exit_code == 2 else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        errors.print("[yellow]stopped[/]")
        return STOPPED
    except BpfilterError as error:
        errors.print(f"[bold red]{name}:[/] {_escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(f"  [cyan]hint:[/] {_escape(error.hint)}", soft_wrap=True)
        return error.exit_code
    except PermissionError as error:
        where = f": {error.filename}" if error.filename else ""
        errors.print(f"[bold red]{name}:[/] permission denied{_escape(where)}", soft_wrap=True)
        errors.print("  [cyan]hint:[/] this command needs root", soft_wrap=True)
        return BpfilterError.exit_code
    except BrokenPipeError:
        # Whoever read our output is gone; the interpreter must not flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _escape(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("[", "\\[")
