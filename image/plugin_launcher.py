"""Starts the CNI plugin from its bundle; istio_init/cni/node/program.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import _imp
import marshal
import posix
import sys

# The directory of the interpreter, which its _pth file makes the prefix.
try:
    file = posix.open(f"{sys.prefix}/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
    importer = posix.read(file, 12288)
except OSError as error:
    sys.exit(f"{sys.prefix}/istio_init.bundle: can't be read: {error.strerror}: install istio-init again")
# The importer, bundle.py, is compiled already; marshal would crash on damaged data.
if _imp.source_hash(sys.hexversion >> 16, importer[8:]) != importer[:8]:
    sys.exit("istio_init.bundle: damaged, or built for another version of Python: install istio-init again")
exec(marshal.loads(importer[8:]))  # noqa: S102, S302 (the bundle's own file)
install(file, f"{sys.prefix}/")  # noqa: F821 (the importer's)

from istio_init.cni.plugin.plugin import main

main()
