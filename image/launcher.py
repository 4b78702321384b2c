"""Starts the program in the image; assemble.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import gc
import marshal
import posix
import sys

# The process is over before a collection would pay; one of the oldest generation takes a millisecond.
gc.disable()
# Last: what a start needs of the standard library is not to be looked for there first.
sys.path.append("/usr/lib/istio-init")
file = posix.open("/usr/lib/istio-init/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
size = int.from_bytes(posix.read(file, 8), "little")
# The program's importer, bundle.py, and then what it begins with.
importer, *contents = marshal.loads(posix.read(file, size))  # noqa: S302 (the image's own file)
exec(importer)  # noqa: S102
install(file, 8 + size, *contents)  # noqa: F821 (the importer's)

from istio_init.entry import main

main()
