"""The doctor's check of a running proxy: whether its configuration fits the rules in the pod's namespace."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from istio_init.cli.verbs import envoy_flags
from istio_init.cli.verbs.packet_flags import run_as
from istio_init.cli.verbs.subject import Where, subject
from istio_init.envoy import fit_report
from istio_init.envoy.node import plain
from istio_init.errors import InitError
from istio_init.inspect.doctor.case import Check
from istio_init.kernel.host import tcp_connections
from istio_init.kernel.host.envoy_admin import DEFAULT_PORT
from istio_init.runner import access
from istio_init.simulate.purposes import purposes

if TYPE_CHECKING:
    from istio_init.options.table import Options

NAME = "Envoy"


def checks(options: Options, source: str, runs_as: str) -> tuple[Check, ...]:
    """The checks of the proxy in the options' namespace; `source` is --envoy, empty to try the admin port."""
    with access.namespace(options):
        running = bool(source) or DEFAULT_PORT in tcp_connections.listening()
    if not running:
        return (Check(NAME, "ok", f"not checked: nothing listens on Envoy's admin port, {DEFAULT_PORT}"),)
    where = Where(live=True)
    try:
        configuration = envoy_flags.configuration(source or envoy_flags.ADMIN, options, where)
        about = run_as(subject(options, where), runs_as)
        fit = envoy_flags.fit(about, configuration)
    except InitError as error:
        means = "whether the rules and the proxy fit is unknown"
        return (Check(NAME, "warn", str(error), means, "give its configuration with --envoy"),)
    if fit.holds:
        notes = f"; {len(fit.notes)} notes (istio-init prove --envoy shows them)" if fit.notes else ""
        return (Check(NAME, "ok", f"fits the rules: {len(fit.claims)} claims hold{notes}"),)
    reasons = partial(purposes, about.options)
    remedy = "change the flags or the proxy's configuration; istio-init prove --envoy shows each step"
    return tuple(
        Check(
            f"{NAME} {each.claim.name} {each.family}",
            "fail",
            plain(each.actual),
            fit_report.summary(each, reasons),
            remedy,
        )
        for each in fit.misfits
    )
