"""The doctor's look at a running proxy: whether it fits the rules in the kernel of its pod."""

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
    """What there is to say of the proxy in the namespace of the options; `source` is --envoy, empty to look for it."""
    with access.namespace(options):
        found = bool(source) or DEFAULT_PORT in tcp_connections.listening()
    if not found:
        return (Check(NAME, "ok", f"nothing listens at port {DEFAULT_PORT}, Envoy's admin port: not checked"),)
    where = Where(live=True)
    try:
        configuration = envoy_flags.configuration(source or envoy_flags.ADMIN, options, where)
        about = run_as(subject(options, where), runs_as)
        fit = envoy_flags.fit(about, configuration)
    except InitError as error:
        means = "whether the rules and the proxy fit is not known"
        return (Check(NAME, "warn", str(error), means, "give its configuration with --envoy"),)
    if fit.holds:
        notes = f"; {len(fit.notes)} notes (istio-init prove --envoy shows them)" if fit.notes else ""
        return (Check(NAME, "ok", f"fits the rules: {len(fit.claims)} claims hold{notes}"),)
    known = partial(purposes, about.options)
    remedy = "change the flags or the proxy's configuration; istio-init prove --envoy shows each step"
    return tuple(
        Check(
            f"{NAME} {each.claim.name} {each.family}",
            "fail",
            plain(each.found),
            fit_report.summary(each, known),
            remedy,
        )
        for each in fit.misfits
    )
