"""Which options of the running verb were given that shape the rules: by flags, the environment or a manifest."""

from __future__ import annotations

from contextvars import ContextVar

from istio_init.options.table import OPTIONS, RUNNING

# Options of how a run goes that shape the rules all the same.
_SHAPING_RUNS = {"drop_invalid", "insert_jumps", "compat_version", "capture_backend", "rule_comments"}
SHAPING = tuple(
    each
    for each in OPTIONS
    if (each.group != RUNNING or each.field in _SHAPING_RUNS) and each.field not in {"ip_family", "iptables_probe_port"}
)

# Set for each verb before it runs: the fields; empty where nothing was given that shapes the rules.
given_options: ContextVar[frozenset[str]] = ContextVar("given_options", default=frozenset())
