"""What can go wrong and rarely does: imported where it is raised, as making a class is what costs a start most."""

from __future__ import annotations

from istio_init.errors import InitError


class ValidationFailed(InitError):
    """The rules stand, but real connections were not captured."""

    exit_code = 126


class SaveError(InitError):
    """iptables-save text that can't be read, or a rule that can't be written as such."""


class Drifted(InitError):
    """Something of ours stands, but it is not the plan, and nobody asked to reconcile it."""


class Locked(InitError):
    """Somebody else held the xtables lock for longer than --wait allows."""
