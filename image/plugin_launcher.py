"""Starts the CNI plugin out of its bundle; istio_init/cni/node/program.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import marshal
import posix
import sys

# The directory of the interpreter, which its _pth file makes the prefix.
file = posix.open(f"{sys.prefix}/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
# The program's importer, bundle.py; what is done there need not be compiled here.
exec(marshal.loads(posix.read(file, 8192)))  # noqa: S102, S302 (the bundle's own file)
install(file, f"{sys.prefix}/")  # noqa: F821 (the importer's)

from istio_init.cni.plugin.plugin import main

main()
