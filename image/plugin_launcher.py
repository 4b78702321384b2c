"""Starts the CNI plugin from its bundle; istio_init/cni/node/program.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for; it is compiled at each start, and therefore short)
import _imp
import marshal
import posix
import sys

# The interpreter's _pth file makes its directory the prefix.
try:
    file = posix.open(f"{sys.prefix}/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
    code = posix.read(file, 12288)
except OSError as error:
    sys.exit(
        "istio_init.bundle: " + error.strerror + ": install istio-init again"
    )  # an f-string takes longer to compile
# The importer (bundle.py), which is compiled already. On damaged data marshal would crash.
if _imp.source_hash(sys.hexversion >> 16, code[8:]) != code[:8]:
    sys.exit("istio_init.bundle: damaged, or built for another version of Python: install istio-init again")
exec(marshal.loads(code[8:]))  # noqa: S102, S302 (the bundle's own file)
install(file, f"{sys.prefix}/")  # noqa: F821 (the importer's)

from istio_init.cni.plugin.plugin import main

main()
