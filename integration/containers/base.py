"""A base image without a registry: python -m integration.containers.base FILE.tar writes one for `docker import`.

It is what debian:bookworm-slim is (a minimal Debian), with Python for the applications in the tests' pods.
The tests make one each time, unless ISTIO_INIT_TEST_BASE names one made before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MADE_BEFORE = "ISTIO_INIT_TEST_BASE"
RELEASE = "bookworm"
PACKAGES = ("ca-certificates", "python3", "usr-is-merged")

# As in Debian's own slim images.
LEFT_OUT = ("doc", "groff", "info", "lintian", "linda", "locale", "man")
KEPT = "/usr/share/doc/*/copyright"

# What this machine trusts, which may be a proxy of its own; under another name, for the package of the usual one
# writes that anew when it is installed.
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
TRUSTED_INSIDE = "/etc/ssl/trusted-by-the-builder.crt"


def make(archive: Path) -> None:
    """Write the root file system as a tar archive; takes half a minute and needs root and Debian's mirror."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        pip = Path(scratch, "pip.conf")
        pip.write_text(f"[global]\ncert = {TRUSTED_INSIDE}\n")
        hooks = [f"--customize-hook=upload {TRUSTED} {TRUSTED_INSIDE}", f"--customize-hook=upload {pip} /etc/pip.conf"]
        slim = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
        slim += ["--dpkgopt=force-unsafe-io", f"--dpkgopt=path-include={KEPT}"]
        # The directories are merged from the start, so that nothing has to be installed that merges them (and Perl).
        merged = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            *slim,
            merged,
            *hooks,
        ]
        subprocess.run([*command, RELEASE, str(archive)], check=True, env={**os.environ, "TMPDIR": scratch})


def archive(directory: Path) -> Path:
    """The archive that was made before, or one that is made now in a directory."""
    before = os.environ.get(MADE_BEFORE)
    if before:
        return Path(before)
    make(directory / "base.tar")
    return directory / "base.tar"


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
