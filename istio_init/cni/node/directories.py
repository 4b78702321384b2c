"""Finds the directories of a node's container runtime for networks and plugins."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

from istio_init.errors import InitError
from istio_init.kernel.host import files
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# As libcni has them (ConfFiles in pkg libcni, api.go); the first by name is the cluster's.
SUFFIXES = (".conf", ".conflist", ".json")


class Directories(Record):
    """The directory of the networks' configuration and that of the plugins' programs."""

    networks: str
    programs: str


# Kubernetes' own defaults, then what distributions have instead.
DEFAULT = Directories("/etc/cni/net.d", "/opt/cni/bin")
USUAL = (
    DEFAULT,
    Directories("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/current/bin"),  # k3s
    Directories("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),  # k3s from 1.31 on
    Directories("/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"),  # MicroK8s
    Directories("/etc/kubernetes/cni/net.d", "/var/lib/cni/bin"),  # OpenShift
    Directories("/etc/cni/net.d", "/home/kubernetes/bin"),  # GKE
)
CONTAINERD = "/etc/containerd/config.toml"
# The CRI plugin's name in containerd's configuration of version 2 and of version 3.
CRI_PLUGINS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")


def candidates(networks: str) -> list[str]:
    """The files in a directory that a runtime would take for networks, in its order."""
    return [name for name in files.names(networks) if os.path.splitext(name)[1] in SUFFIXES]


def detect(networks: str, programs: str, root: str = "/") -> Directories:
    """The directories that were named and, for one that was left empty, those of this node below `root`.

    They are containerd's where its configuration says so; else the first usual pair that exists, one with a
    network in it before one without. InitError where there is none.
    """
    if networks and programs:
        return Directories(networks, programs)
    pairs = [
        pair
        for pair in (*_containerd(root), *USUAL)
        if (os.path.isdir(_below(root, pair.networks)) and os.path.isdir(_below(root, pair.programs)))
        and networks in {"", pair.networks}
        and programs in {"", pair.programs}
    ]
    pairs.sort(key=lambda pair: not candidates(_below(root, pair.networks)))
    if pairs:
        return Directories(_below(root, pairs[0].networks), _below(root, pairs[0].programs))
    if networks or programs:
        return Directories(networks or DEFAULT.networks, programs or DEFAULT.programs)
    raise InitError("no CNI directory found in the usual locations: name them with --cni-net-dir and --cni-bin-dir")


def detect_networks(root: str = "/") -> str:
    """The directory of this node's networks below `root`, for callers that do not need the programs.

    InitError where there is none.
    """
    directories = [_below(root, pair.networks) for pair in (*_containerd(root), *USUAL)]
    there = sorted(filter(os.path.isdir, directories), key=lambda path: not candidates(path))
    if not there:
        raise InitError("no CNI network found in the usual locations: name the directory with --cni-net-dir")
    return there[0]


def _below(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/")) if root != "/" else path


def _containerd(root: str) -> Iterator[Directories]:
    """What containerd's own configuration says, nothing where there is none."""
    path = _below(root, CONTAINERD)
    content = files.read(path)
    if content is None:
        return
    try:
        plugins = tomllib.loads(content.data.decode())["plugins"]
    except KeyError:
        return
    except ValueError as error:
        what = f"{files.named(path)}: can't be understood: {error}"
        raise InitError(f"{what}; name the CNI directories instead") from error
    for name in CRI_PLUGINS:
        cni = _table(plugins, name, "cni")
        programs = cni.get("bin_dir") or next(iter(cni.get("bin_dirs", ())), "")
        if cni.get("conf_dir") and programs:
            yield Directories(str(cni["conf_dir"]), str(programs))


def _table(document: object, *names: str) -> Mapping[str, Any]:
    """A table in a TOML document by its path, empty where there is none."""
    for name in names:
        document = document.get(name, {}) if isinstance(document, dict) else {}
    return document if isinstance(document, dict) else {}
