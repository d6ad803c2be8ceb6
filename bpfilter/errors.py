"""The one exception tree: every error that reaches a user is one of these.

BpfilterError
├── RulesetRefused     the input is not a ruleset that iptables accepts      exit 2
├── LiveReadError      the live ruleset could not be read                    exit 1
├── ReadersDisagree    two independent readers saw different rules           exit 1
├── CompileError       a ruleset beyond what the compiler can represent      exit 1
├── ProofFailed        the compiled tables are not the ruleset               exit 1
├── KernelError        a bpf(2), netlink or libbpf call failed               exit 1
│   └── VerifierRejected   the kernel refused the program
├── LabError           the lab could not be built or observed                exit 1
├── CaptureError       a pcap file that cannot be read                       exit 1
├── RolloutError       a stage change that cannot be made safely             exit 1
├── SettingsError      the daemon's configuration cannot be used             exit 64
└── UsageError         the command line makes no sense                       exit 64
"""

from __future__ import annotations


class BpfilterError(Exception):
    """Base of all errors shown to users: a sentence, and a hint that says what to do next."""

    exit_code = 1
    problem = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class RulesetRefused(BpfilterError):
    """The ruleset text is refused; names the source, the line (from 1) and the offending word."""

    exit_code = 2
    problem = "ruleset-refused"

    def __init__(
        self,
        message: str,
        *,
        source: str = "-",
        line: int | None = None,
        word: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = source if line is None else f"{source}:{line}"
        quoted = f" (at {word!r})" if word is not None else ""
        super().__init__(f"{where}: {message}{quoted}", hint=hint)
        self.source = source
        self.line = line
        self.word = word


class LiveReadError(BpfilterError):
    """The live ruleset could not be read whole, so nothing may be concluded from it."""

    problem = "live-read"


class ReadersDisagree(BpfilterError):
    """iptables-save and libiptc read different rules; shows both readings."""

    problem = "readers-disagree"


class CompileError(BpfilterError):
    """The ruleset exceeds a limit of the compiled form."""

    problem = "compile"


class ProofFailed(BpfilterError):
    """The equivalence proof found a packet that the tables judge differently."""

    problem = "proof-failed"


class KernelError(BpfilterError):
    """A kernel interface refused a call; carries the errno name where there is one."""

    problem = "kernel"


class VerifierRejected(KernelError):
    """The BPF verifier refused a program; `log` holds its last lines."""

    problem = "verifier"

    def __init__(self, message: str, *, log: str, hint: str | None = None) -> None:
        super().__init__(f"{message}\n{log}" if log else message, hint=hint)
        self.log = log


class LabError(BpfilterError):
    """The lab's namespaces could not be built, fed or observed."""

    problem = "lab"


class CaptureError(BpfilterError):
    """A capture file is damaged or of a link type that cannot be evaluated."""

    problem = "capture"


class RolloutError(BpfilterError):
    """A stage change was refused or undone; the host is as it was."""

    problem = "rollout"


class UsageError(BpfilterError):
    """The command line asks for something that makes no sense."""

    exit_code = 64
    problem = "usage"


class TooMuchEdited(Exception):
    """Rules were edited in a way that a running program cannot go round; the message says why.

    Never shown by itself: iptables decides alone then, until there is a new plan.
    """
