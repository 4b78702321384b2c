"""Whether this node can capture pods: the doctor's quick checks, for STATUS."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from istio_init.cni.plugin.agent_client import AgentClient
from istio_init.cni.plugin.decision import network_options
from istio_init.cni.plugin.settings import REQUIRED
from istio_init.errors import InitError
from istio_init.inspect.doctor.checks import backend, capabilities
from istio_init.inspect.doctor.collect import examine
from istio_init.inspect.doctor.ebpf import ebpf_checks
from istio_init.inspect.doctor.support import support_checks
from istio_init.kernel.host.logfile import make_directory
from istio_init.kernel.host.netns import OWN
from istio_init.runner import defaults
from istio_init.simulate.path import proxy

if TYPE_CHECKING:
    from istio_init.cni.plugin.settings import Settings

# Checks that need no pod and take less time than a runtime waits.
LOOKS = (capabilities, backend, ebpf_checks, support_checks)


def troubles(settings: Settings) -> tuple[str, ...]:
    """What would make an ADD fail, each in one line with its remedy; empty where nothing would.

    OptionError where the configuration's options are wrong, KernelError where not even the kernel's facts can be had.
    """
    options = network_options(settings, defaults.account)
    case = examine(options.replace(network_namespace=OWN), (proxy(options).uid, proxy(options).gid))
    failed = [check for look in LOOKS for check in look(case) if check.status == "fail"]
    lines = [f"{check.name}: {check.finding}{f'; {check.remedy}' if check.remedy else ''}" for check in failed]
    return (*lines, *_files(settings), *_agent(settings))


def _agent(settings: Settings) -> tuple[str, ...]:
    """What keeps the node agent from answering, if pods cannot start without it."""
    if settings.agent != REQUIRED:
        return ()
    client = AgentClient(settings.agent_socket)
    try:
        return client.health()
    except InitError as error:
        return (str(error),)
    finally:
        client.close()


def _files(settings: Settings) -> list[str]:
    lines = []
    try:
        make_directory(settings.run_dir)
    except OSError as error:
        lines.append(f"run_dir: {settings.run_dir}: can't be made: {error.strerror}")
    else:
        if not os.access(settings.run_dir, os.W_OK | os.X_OK):
            lines.append(f"run_dir: {settings.run_dir}: can't be written to")
    api = settings.api
    if api is not None and not os.access(api.kubeconfig, os.R_OK):
        lines.append(f"kubernetes.kubeconfig: {api.kubeconfig}: can't be read")
    return lines
