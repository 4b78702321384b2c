"""The CRI messages' Python code: `python -m scripts.generate.cri_messages` writes it anew from cri.proto.

It needs an environment with grpcio-tools (`pip install 'grpcio-tools>=1.73,<1.76'`), whose protoc makes code for
protobuf 6.31 and later (protobuf's rule: the generated code's own major release, and the next).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = "istio_init/cni/node/cri.proto"

if __name__ == "__main__":
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--pyi_out=.", SOURCE]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
