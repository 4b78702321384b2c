"""The plugin on a node: its program among the CNI plugins, and its entry in the cluster's network.

Every file is replaced as a whole, so a run that is killed leaves the old one or the new one, and the next completes
it: the program goes first when coming and last when going, since a list that names a program which is not there keeps
every pod from starting.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from istio_init.cni.node import conflist, program
from istio_init.cni.node.conflist import PLUGIN
from istio_init.cni.node.directories import candidates
from istio_init.errors import InitError
from istio_init.kernel.host import file_locks, files
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from istio_init.cni.node.directories import Directories
    from istio_init.kernel.host.files import Content

# The suffix of a .conf that was converted to a .conflist: runtimes ignore it.
ASIDE = ".before-istio-init"
NEW_MODE = 0o600
# The type of Istio's own plugin.
ISTIOS = "istio-cni"
T = TypeVar("T")
ATTEMPTS = 10


class Status(Record):
    """The plugin on a node: its program, the network that a runtime uses, and the plugin's entry in it."""

    program: str  # present, absent
    network: str  # its path, empty if there is none
    entry: str  # in place, differs, misplaced (first of the list, or there twice), absent

    @property
    def whole(self) -> bool:
        """Whether pods are being captured."""
        return self.program == "present" and self.entry == "in place"


def claim(places: Directories) -> file_locks.FileClaim:
    """Marks the plugin as kept by a running installer, within a `with`; renew() after each install.

    It is a lock on the installed program, so that nothing else is left in the directory.
    """
    return file_locks.FileClaim(os.path.join(places.programs, PLUGIN))


def _require_no_claim(places: Directories) -> None:
    """InitError if a running installer keeps the plugin installed: it would restore what is removed."""
    path = os.path.join(places.programs, PLUGIN)
    if file_locks.is_claimed(path):
        raise InitError(
            f"{path}: kept installed by a running `istio-init cni install --watch` or `cni agent`, which would "
            "restore it; end that first (helm uninstall, or kubectl delete daemonset istio-init-cni)"
        )


def install(places: Directories, source: str, plugin: Mapping[str, Any]) -> tuple[str, ...]:
    """Install the program and the entry; returns the actions taken, none if both were in place.

    `plugin` is our entry (conflist.plugin_configuration). InitError, which names the file, where a network can't be
    read or there is none yet; nothing of it is changed then.
    """
    done = []
    with file_locks.DirectoryLock(places.programs):
        if program.install(source, places.programs):
            done.append(f"{os.path.join(places.programs, PLUGIN)}: installed")
    with file_locks.DirectoryLock(places.networks):
        tuple(files.sweep(places.networks))
        done += _persisted(places.networks, plugin)
    return tuple(done)


def uninstall(places: Directories, *, keep_program: bool = False) -> tuple[str, ...]:
    """Remove the entry from every network, then the program; returns the actions taken.

    A file that can't be understood has no entry of the plugin and is left alone, unless it names the plugin: then the
    program stays, and an InitError tells which file it was. A running installer is an InitError, too.
    """
    _require_no_claim(places)
    done: list[str] = []
    failed: list[str] = []
    with file_locks.DirectoryLock(places.networks):
        tuple(files.sweep(places.networks))
        done += _put_back(places.networks)
        for name in candidates(places.networks):
            path = os.path.join(places.networks, name)
            try:
                done += _withdraw(path)
            except InitError as error:
                if _mentions(path):
                    failed.append(str(error))
    if failed:
        raise InitError("; ".join(failed))
    if not keep_program:
        with file_locks.DirectoryLock(places.programs):
            if program.remove(places.programs):
                done.append(f"{os.path.join(places.programs, PLUGIN)}: removed")
    return tuple(done)


def status(places: Directories, plugin: Mapping[str, Any] | None) -> Status:
    """The plugin's state on a node; its entry is compared with `plugin`, unless that is None.

    It is in place exactly if `install` would change nothing. InitError where the network can't be read, or has a
    version that the plugin refuses.
    """
    present = "present" if os.access(os.path.join(places.programs, PLUGIN), os.X_OK) else "absent"
    path = _first(places.networks)
    if path is None:
        return Status(present, "", "absent")
    return Status(present, path, _entry_state(path, plugin) if path.endswith(".conflist") else "absent")


def _entry_state(path: str, plugin: Mapping[str, Any] | None) -> str:
    _, text = _read(path)
    current = _checked(path, lambda: conflist.plugin_entry(text))
    if current is None:
        return "absent"
    _checked(path, lambda: conflist.require_supported_version(text))
    if not _checked(path, lambda: conflist.is_chained_once(text)):
        return "misplaced"
    return "in place" if plugin is None or current == plugin else "differs"


def current_entry(networks: str) -> tuple[str, dict[str, Any]] | None:
    """The name of the network that a runtime uses and our entry in it; None where it has none, or there is no network.

    InitError where the file can't be understood.
    """
    path = _first(networks)
    if path is None or not path.endswith(".conflist"):
        return None
    _, text = _read(path)
    entry = _checked(path, lambda: conflist.plugin_entry(text))
    return (conflist.name(text), entry) if entry is not None else None


def rivals(networks: str) -> tuple[str, ...]:
    """A warning if Istio's own plugin is in the network that a runtime uses: both would program every pod."""
    path = _first(networks)
    if path is None or not path.endswith(".conflist"):
        return ()
    _, text = _read(path)
    if ISTIOS not in _checked(path, lambda: conflist.types(text)):
        return ()
    return (f"{files.named(path)}: {ISTIOS} is in the same list: both plugins would program every pod; remove one",)


def _first(networks: str) -> str | None:
    """The network that a runtime uses: the first by name."""
    return next((os.path.join(networks, name) for name in candidates(networks)), None)


def _persisted(networks: str, plugin: Mapping[str, Any]) -> Iterator[str]:
    """Add the entry; retry if another program writes the file in between."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            yield from _enter(networks, plugin)
        except files.Changed:
            if attempt == ATTEMPTS:
                raise
        else:
            return


def _enter(networks: str, plugin: Mapping[str, Any]) -> list[str]:
    path = _first(networks)
    if path is None:
        raise InitError(
            f"{files.named(networks)}: no network is configured here yet; is this the node's CNI directory?"
        )
    if not path.endswith(".conflist"):
        return _convert(path, plugin)
    path = os.path.realpath(path)
    content, text = _read(path)
    changed = _checked(path, lambda: conflist.with_plugin(text, plugin))
    if changed == text:
        return []
    files.replace(path, changed.encode(), content, NEW_MODE)
    return [f"{path}: {PLUGIN} {'brought up to date' if PLUGIN in conflist.types(text) else 'added'}"]


def _convert(path: str, plugin: Mapping[str, Any]) -> list[str]:
    """Convert a single plugin's configuration to a list. The original is renamed, and restored on removal.

    While both exist the runtime takes the single one, whose name comes first.
    """
    content, text = _read(path)
    network_list = _checked(path, lambda: conflist.with_plugin(conflist.list_of_configuration(text), plugin))
    target = f"{os.path.splitext(path)[0]}.conflist"
    standing = files.read(target)
    if standing and PLUGIN.encode() not in standing.data:
        raise InitError(
            f"{files.named(path)}: {files.named(target)}, which it would become, is another network; remove one of them"
        )
    like = standing.replace(mode=content.mode, owner=content.owner) if standing else None
    files.replace(target, network_list.encode(), like, content.mode)
    if files.read(path) != content:
        raise files.Changed(f"{files.named(path)}: another program has written it meanwhile")
    files.rename(path, path + ASIDE)
    return [f"{target}: made of {os.path.basename(path)}, {PLUGIN} added"]


def _put_back(networks: str) -> Iterator[str]:
    """Restore the single configurations that were renamed, and delete the lists made of them."""
    for name in files.names(networks):
        if not name.endswith(ASIDE):
            continue
        path = os.path.join(networks, name.removesuffix(ASIDE))
        if os.path.lexists(path):
            files.remove(os.path.join(networks, name))  # another program has written it again
        else:
            files.rename(os.path.join(networks, name), path)
            yield f"{path}: put back"


def _withdraw(path: str) -> list[str]:
    """Remove the entry from one file."""
    if not path.endswith(".conflist"):
        return []
    path = os.path.realpath(path)
    content, text = _read(path)
    if PLUGIN not in _checked(path, lambda: conflist.types(text)):
        return []
    changed = _checked(path, lambda: conflist.without_plugin(text))
    if _is_converted(path, changed):
        files.remove(path)
        files.sync(os.path.dirname(path))
        return [f"{path}: removed"]
    files.replace(path, changed.encode(), content, NEW_MODE)
    return [f"{path}: {PLUGIN} taken out"]


def _is_converted(path: str, text: str) -> bool:
    """Whether a list was converted from the single configuration beside it."""
    for suffix in (".conf", ".json"):
        beside = files.read(f"{os.path.splitext(path)[0]}{suffix}")
        try:
            if beside is not None and conflist.list_of_configuration(beside.data.decode()) == text:
                return True
        except ValueError:
            continue
    return False


def _mentions(path: str) -> bool:
    try:
        content = files.read(path)
    except InitError:
        return True
    return content is not None and PLUGIN.encode() in content.data


def _read(path: str) -> tuple[Content, str]:
    content = files.read(path)
    if content is None:
        raise files.Changed(f"{files.named(path)}: another program has removed it meanwhile")
    return content, _checked(path, content.data.decode)


def _checked(path: str, ask: Callable[[], T]) -> T:
    """What is asked of a file's text; InitError that names the file where it can't be understood."""
    try:
        return ask()
    except ValueError as error:
        raise InitError(f"{files.named(path)}: {error}; not changed: fix it, or remove it") from error
