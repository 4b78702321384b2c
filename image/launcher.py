"""Starts the program in the image; assemble.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import marshal
import posix
import sys

# Last: what a start needs of the standard library is not to be looked for there first.
sys.path.append("/usr/lib/istio-init")
file = posix.open("/usr/lib/istio-init/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
# The program's importer, bundle.py; what is done there need not be compiled here.
exec(marshal.loads(posix.read(file, 8192)))  # noqa: S102, S302 (the image's own file)
install(file)  # noqa: F821 (the importer's)

from istio_init.cli.image_entry import main

main()
