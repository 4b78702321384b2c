"""Starts the CNI plugin out of its bundle; istio_init/cni/program.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import gc
import marshal
import posix
import sys

# The process is over before a collection would pay; one of the oldest generation takes a millisecond.
gc.disable()
# The directory of the interpreter, which its _pth file makes the prefix.
file = posix.open(f"{sys.prefix}/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
size = int.from_bytes(posix.read(file, 8), "little")
# The program's importer, bundle.py, and then what it begins with.
importer, first, places, extensions = marshal.loads(posix.read(file, size))  # noqa: S302 (the bundle's own file)
exec(importer)  # noqa: S102
extensions = {name: f"{sys.prefix}/{path}" for name, path in extensions.items()}
install(file, 8 + size, first, places, extensions)  # noqa: F821 (the importer's)

from istio_init.cni.plugin import main

main()
