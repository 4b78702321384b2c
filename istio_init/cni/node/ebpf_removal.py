"""Takes capture by eBPF off this node: programs, maps and pins of every release."""

from __future__ import annotations

from istio_init.kernel.ebpf import layouts, pins, pods
from istio_init.kernel.ebpf.installation import Installation
from istio_init.kernel.ebpf.refusal import refusal
from istio_init.record import Record


class Removal(Record):
    """What was removed, a directory of pins each; or how many pods are captured, if that is why nothing was."""

    removed: tuple[str, ...] = ()
    captured: int = 0


def remove(*, force: bool) -> Removal:
    """Remove it where no pod is captured by it any more, or in any case with `force`.

    Open connections live on; new ones of pods that are captured go to their destinations, past the proxy. KernelError
    where the kernel refuses.
    """
    installation = Installation("")
    try:
        if not pins.exists(installation.directory):
            return Removal()
        pods.collect(installation)
        with installation.lock():
            homes = layouts.homes(installation.directory)
            captured = sum(len(layouts.cookies(each)) for each in homes)
            if captured and not force:
                return Removal(captured=captured)
            for each in homes:
                layouts.remove(each)
    except OSError as error:
        raise refusal(error) from error
    finally:
        installation.close()
    return Removal(homes)
