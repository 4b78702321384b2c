"""Starts the program in the image; assemble.py puts the interpreter's line before this."""

# ruff: noqa: E402 (the order is what this file is for)
import _imp
import marshal
import posix
import sys

# Last: the parts of the standard library that a start needs are not there.
sys.path.append("/usr/lib/istio-init")
try:
    file = posix.open("/usr/lib/istio-init/istio_init.bundle", posix.O_RDONLY | posix.O_CLOEXEC)
    importer = posix.read(file, 12288)
except OSError as error:
    sys.exit(f"/usr/lib/istio-init/istio_init.bundle: can't be read: {error.strerror}: install istio-init again")
# The importer, bundle.py, is compiled already; marshal would crash on damaged data.
if _imp.source_hash(sys.hexversion >> 16, importer[8:]) != importer[:8]:
    sys.exit("istio_init.bundle: damaged, or built for another version of Python: install istio-init again")
exec(marshal.loads(importer[8:]))  # noqa: S102, S302 (the image's own file)
install(file)  # noqa: F821 (the importer's)

from istio_init.cli.image_entry import main

main()
