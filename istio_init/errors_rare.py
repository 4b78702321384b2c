"""Errors that are imported only where they are raised, since creating a class costs start time."""

from __future__ import annotations

from istio_init.errors import InitError, shown


class ValidationFailed(InitError):
    """The rules exist, but real connections were not captured."""

    exit_code = 126


class SaveError(InitError):
    """iptables-save text that can't be parsed, or a rule that has no such text."""


class Drifted(InitError):
    """Istio rules exist that differ from the plan, and --reconcile was not given."""


class Locked(InitError):
    """Another process held the xtables lock for longer than --wait allows."""


class UsageError(InitError):
    """The command line or the environment is wrong."""

    exit_code = 255


class OptionError(UsageError):
    """One option's value is wrong: which flag or variable, which value, why.

    `source` is the flag or the environment variable as the user wrote it, `value` its value. `exit_code` is 1 if
    Istio's flag parser accepts the text and its program rejects it.
    """

    def __init__(self, source: str, value: str, why: str, *, exit_code: int = UsageError.exit_code) -> None:
        super().__init__(f"{source}: {shown(value)}: {why}")
        self.source, self.value, self.why, self.exit_code = source, value, why, exit_code
