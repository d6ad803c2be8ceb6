# SPDX-License-Identifier: Apache-2.0
"""Writes man pages and shell completions of the command line into a directory.

`man/man1/bpfilter.1`, `bpfilter-VERB.1`, `man/man8/bpfilterd.8`, and completions under the paths
below `/usr/share` at which bash, zsh and fish look. click-man cannot: typer brings its own click.
The pages say what `--help` says; they are made anew with every build and never edited.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.completion import get_completion_script

from bpfilter import __version__
from bpfilter.cli.daemon import daemon_command
from bpfilter.cli.main import EPILOG, app

COMPLETIONS = {
    "bash": "bash-completion/completions/bpfilter",
    "zsh": "zsh/vendor-completions/_bpfilter",
    "fish": "fish/vendor_completions.d/bpfilter.fish",
}
_MARKUP = re.compile(r"\[/?(?:bold|cyan|dim|green|red|yellow)?\]")


def main() -> None:
    """The one argument is the directory."""
    directory = Path(sys.argv[1])
    cli = typer.main.get_command(app)
    verbs = cli.commands
    summaries = {name: first_sentence(verb.help) for name, verb in sorted(verbs.items())}
    write(directory / "man/man1/bpfilter.1", group_page(cli, summaries))
    for name, verb in verbs.items():
        write(directory / f"man/man1/bpfilter-{name}.1", page(f"bpfilter-{name}", verb, 1))
    daemon = typer.Typer(add_completion=False)
    daemon.command()(daemon_command)
    write(directory / "man/man8/bpfilterd.8", page("bpfilterd", typer.main.get_command(daemon), 8))
    for shell, place in COMPLETIONS.items():
        script = get_completion_script(
            prog_name="bpfilter", complete_var="_BPFILTER_COMPLETE", shell=shell
        )
        write(directory / place, [script])


def write(path: Path, lines: Iterator[str] | list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def plain(text: str | None) -> str:
    return _MARKUP.sub("", text or "").strip()


def first_sentence(text: str | None) -> str:
    head = " ".join(plain(text).split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) ", head)[0].rstrip(".:")


def roff(text: str) -> str:
    """Text that troff takes literally, wherever it stands."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return f"\\&{text}" if text.startswith(".") else text


def header(name: str, section: int, summary: str) -> Iterator[str]:
    yield f'.TH "{roff(name.upper())}" "{section}" "" "bpfilter {__version__}" "bpfilter"'
    yield from (".SH NAME", f"{roff(name)} \\- {roff(summary)}", ".SH SYNOPSIS")


def group_page(cli: Any, summaries: dict[str, str]) -> Iterator[str]:
    yield from header("bpfilter", 1, first_sentence(cli.help))
    yield "\\fBbpfilter\\fR [\\fIOPTIONS\\fR] \\fIVERB\\fR [\\fIARGUMENTS\\fR]"
    yield from paragraphs(cli.help)
    yield ".SH VERBS"
    for name, summary in summaries.items():
        yield from (".TP", f"\\fBbpfilter\\-{roff(name)}\\fR(1)", roff(summary))
    yield from options(cli)
    yield from exit_codes()


def page(name: str, command: Any, section: int) -> Iterator[str]:
    yield from header(name, section, first_sentence(command.help))
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join(f"\\fI{roff(p.metavar or p.name.upper())}\\fR" for p in arguments)
    yield f"\\fB{roff(name.replace('-', ' ', 1))}\\fR [\\fIOPTIONS\\fR] {words}".rstrip()
    yield from paragraphs(command.help)
    yield from options(command)
    yield from exit_codes()
    if section == 1:
        yield from (".SH SEE ALSO", "\\fBbpfilter\\fR(1), \\fBbpfilterd\\fR(8)")


def paragraphs(text: str | None) -> Iterator[str]:
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(plain(text).split("\n\n")):
        if number:
            yield ".PP"
        yield roff(" ".join(paragraph.split()))


def options(command: Any) -> Iterator[str]:
    context = typer.Context(command)
    yield ".SH OPTIONS"
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument" and parameter.help:
            metavar = roff(parameter.metavar or parameter.name.upper())
            yield from (".TP", f"\\fI{metavar}\\fR", roff(plain(parameter.help)))
        record = parameter.get_help_record(context)
        if record is not None and parameter.opts[0].startswith("-"):
            yield from (".TP", f"\\fB{roff(record[0])}\\fR", roff(plain(record[1])))


def exit_codes() -> Iterator[str]:
    yield from (".SH EXIT STATUS", roff(plain(EPILOG.removeprefix("Exit codes: "))))


if __name__ == "__main__":
    main()
