"""The `bpfilter` command: one verb per module, errors as sentences, exit codes for scripts.

Exit codes: 0 done, no difference; 1 failed, or verify diverged; 2 ruleset refused (plan, eval,
verify), there is a change (diff, deploy --dry-run) or promotion is not allowed (report); 64 usage.
"""

from __future__ import annotations

import sys

import typer

from bpfilter import __version__
from bpfilter.cli.counters import counters_command
from bpfilter.cli.dashboard import dashboard_command
from bpfilter.cli.demo import demo_command
from bpfilter.cli.deploy import deploy_command
from bpfilter.cli.diff import diff_command
from bpfilter.cli.doctor import doctor_command
from bpfilter.cli.eval import eval_command
from bpfilter.cli.events import events_command, history_command
from bpfilter.cli.explain import explain_command
from bpfilter.cli.plan import plan_command
from bpfilter.cli.report import report_command
from bpfilter.cli.run import run_app
from bpfilter.cli.serve import serve_command
from bpfilter.cli.shadow import shadow_command
from bpfilter.cli.stages import confirm_command, rollback_command, status_command
from bpfilter.cli.teardown import teardown_command
from bpfilter.cli.token import token_command
from bpfilter.cli.verify import verify_command
from bpfilter.cli.watch import watch_command

EPILOG = "Exit codes: 0 done · 1 failed or diverged · 2 ruleset refused · 64 usage."

app = typer.Typer(
    name="bpfilter",
    help="Answer iptables' verdicts from BPF, exactly, and fall back to iptables at any moment.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bpfilter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """Answer iptables' verdicts from BPF, exactly, and fall back to iptables at any moment."""


app.command("plan", epilog=EPILOG)(plan_command)
app.command("diff", epilog=EPILOG)(diff_command)
app.command("eval", epilog=EPILOG)(eval_command)
app.command("explain", epilog=EPILOG)(explain_command)
app.command("verify", epilog=EPILOG)(verify_command)
app.command("deploy", epilog=EPILOG)(deploy_command)
app.command("confirm", epilog=EPILOG)(confirm_command)
app.command("rollback", epilog=EPILOG)(rollback_command)
app.command("status", epilog=EPILOG)(status_command)
app.command("shadow", epilog=EPILOG)(shadow_command)
app.command("report", epilog=EPILOG)(report_command)
app.command("counters", epilog=EPILOG)(counters_command)
app.command("events", epilog=EPILOG)(events_command)
app.command("history", epilog=EPILOG)(history_command)
app.command("watch", epilog=EPILOG)(watch_command)
app.command("doctor", epilog=EPILOG)(doctor_command)
app.command("dashboard", epilog=EPILOG)(dashboard_command)
app.command("serve", epilog=EPILOG)(serve_command)
app.command("token", epilog=EPILOG)(token_command)
app.command("demo", epilog=EPILOG)(demo_command)
app.command("teardown", epilog=EPILOG)(teardown_command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; never lets a traceback reach a user."""
    return run_app(app, "bpfilter", arguments)


def main() -> None:
    sys.exit(run())


if __name__ == "__main__":
    main()
