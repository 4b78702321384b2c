"""What --version prints: the version, the commit where it is known, and the libraries that rules go through."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata

from istio_init import __version__
from istio_init.kernel.host.libraries import file_of

# The libraries of the legacy backend, and the distribution of the second engine.
LIBRARIES = ("libip4tc.so.2", "libip6tc.so.2")
SECOND_ENGINE = "python-iptables"
NAME = "istio-init"


def text() -> str:
    """The lines of --version."""
    facts = {
        "commit": commit() or "unknown",
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        **{soname.partition(".")[0]: file_of(soname) or "missing" for soname in LIBRARIES},
        "nf_tables": "by netlink, without a library",
        SECOND_ENGINE: _distribution(SECOND_ENGINE),
    }
    width = max(map(len, facts))
    return "".join((f"{NAME} {__version__}\n", *(f"  {name:{width}}  {value}\n" for name, value in facts.items())))


def commit() -> str:
    """The commit of the checkout that this package is in, or that it was installed from; empty if it is unknown."""
    package = os.path.dirname(os.path.dirname(text.__code__.co_filename))
    return _checked_out(os.path.join(os.path.dirname(package), ".git")) or _installed()


def _installed() -> str:
    """What pip recorded of a repository that it installed from (PEP 610)."""
    try:
        recorded = metadata.distribution(NAME).read_text("direct_url.json") or "{}"
        commit = json.loads(recorded).get("vcs_info", {}).get("commit_id", "")
    except (metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return ""
    return commit if isinstance(commit, str) and commit.isalnum() else ""


def _checked_out(git: str) -> str:
    """The commit of HEAD, read from git's files; a worktree has a file that names its directory."""
    if os.path.isfile(git):
        git = os.path.join(os.path.dirname(git), _read(git).removeprefix("gitdir: "))
    shared = os.path.join(git, _read(os.path.join(git, "commondir")))
    head = _read(os.path.join(git, "HEAD"))
    reference = head.removeprefix("ref: ")
    if reference == head:
        return head
    packed = _read(os.path.join(shared, "packed-refs")).splitlines()
    lines = (line.split(" ") for line in packed if not line.startswith(("#", "^")))
    return _read(os.path.join(shared, reference)) or next((w[0] for w in lines if w[1:] == [reference]), "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20).strip()
    except OSError:
        return ""


def _distribution(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
