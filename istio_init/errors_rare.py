"""What can go wrong and rarely does: imported where it is raised, as making a class is what costs a start most."""

from __future__ import annotations

from istio_init.errors import InitError, shown


class ValidationFailed(InitError):
    """The rules exist, but real connections were not captured."""

    exit_code = 126


class SaveError(InitError):
    """iptables-save text that can't be read, or a rule that can't be written as such."""


class Drifted(InitError):
    """Istio rules exist that differ from the plan, and --reconcile was not given."""


class Locked(InitError):
    """Somebody else held the xtables lock for longer than --wait allows."""


class UsageError(InitError):
    """The command line or the environment can't be understood."""

    exit_code = 255


class OptionError(UsageError):
    """One option's value is wrong: which flag or variable, which value, why.

    `source` is the flag or the environment variable as the user wrote it, `value` what was given. `exit_code` is 1
    where Istio's flag parser takes the text, and its program refuses it.
    """

    def __init__(self, source: str, value: str, why: str, *, exit_code: int = UsageError.exit_code) -> None:
        super().__init__(f"{source}: {shown(value)}: {why}")
        self.source, self.value, self.why, self.exit_code = source, value, why, exit_code
