"""Looking for what breaks a parser, guided by coverage: the targets of untrusted.py under atheris.

python -m tests.kit.fuzz                          # which targets there are
python -m tests.kit.fuzz save -max_total_time=60  # libFuzzer's own options; what breaks a target is left in a file
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice

import atheris

with atheris.instrument_imports(include=["istio_init", "yaml"]):
    import yaml  # noqa: F401 (formats/yaml_json.py imports it only once it needs it, and then it is too late)

    from istio_init.options.table import OPTIONS
    from tests.kit.corpus import corpus
    from tests.kit.untrusted import TARGETS, VARIABLES, nftables_dump
    from tests.planning.cases import CASES, GOLDEN, argv

_SAVED = (
    "*nat",
    ":PREROUTING ACCEPT [0:0]",
    "-A OUTPUT -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1 -j RETURN",
)
# What a target's input is made of, for a start: libFuzzer would take long to come upon a flag's name.
WORDS: dict[str, Sequence[str]] = {
    "command_line": (
        *(f"--{each.flag}" for each in OPTIONS),
        *(f"-{each.short}" for each in OPTIONS if each.short),
        *(f"{name}=" for name in sorted(VARIABLES)),
        *("*", "80,443", "4000-4003", "10.0.0.0/8", "2001:db8::/32", "eth0", "TPROXY", "1337", "true", "5s", "1.13"),
    ),
    "save": (*_SAVED, *" ".join(_SAVED).split(), "COMMIT", "*mangle", "*raw", "-j TPROXY", "--on-port", "--ctstate"),
    "cni": (
        *('"cniVersion":"1.1.0"', '"name":"pods"', '"type":"istio-init-cni"', '"runtimeConfig":', '"prevResult":{}'),
        *(
            '"istio":{',
            '"io.kubernetes.cri.pod-annotations":{',
            "K8S_POD_NAME=",
            "K8S_POD_NAMESPACE=",
            "IgnoreUnknown=1;",
        ),
    ),
    "document": (
        *("apiVersion: v1", "kind: Pod", "metadata:", "  annotations:", "&a", "*a", "<<:", "!!python/name:os.system"),
        *("? ", "--- ", "...", "|-", "{", "}", "0x1f", "1_000", "2001-01-01", ".inf"),
    ),
    "injection": (
        *(
            "kind: Pod\n",
            "spec:\n",
            "  containers: [{name: a}]\n",
            "  initContainers:",
            " []",
            " null",
            "\n  - name: b",
        ),
        *("template:", "items:", "metadata:", "annotations:", "&a ", "*a", "<<: *a", "# c", "? ", "--- ", "|-", "\r\n"),
    ),
    "nftables": (
        *(
            f"{name}\0"
            for name in ("meta", "cmp", "lookup", "payload", "immediate", "bitwise", "counter", "tproxy", "ct")
        ),
        *("istio-tproxy\0", "__set0\0"),
    ),
    "runtime": (
        "info",
        '{"pid": 5, "runtimeSpec": {',
        '"linux": {"namespaces": [',
        '{"type": "network", "path": "/n"}',
    ),
}


def seeds(name: str) -> Iterator[bytes]:
    """Inputs that a target takes, for a start."""
    match name:
        case "command_line":
            yield from ("\0".join(argv(case)).encode() for case in CASES)
        case "save":
            yield from (b"4" + path.read_bytes() for path in sorted(GOLDEN.glob("*.txt")))
        case "cni":
            configuration = (
                b'{"cniVersion":"1.0.0","name":"pods","type":"istio-init-cni","istio":{"inbound-ports":"*"}}'
            )
            yield b"K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0\0" + configuration
        case "document":
            yield from (path.read_bytes() for path in pathlib.Path(__file__).parents[1].glob("cni/charts/*.yaml"))
        case "injection":
            yield from (text.encode() for _, text in islice(corpus(), 0, None, 9))
        case "nftables":
            _, dump = nftables_dump()
            messages = (dump.chains, dump.rules, dump.sets, *dump.elements.values())
            yield from (bytes((min(kind, 3),)) + data for kind, each in enumerate(messages) for data in each)
        case "runtime":
            # A status with a namespace's option in it, and the beginning of what is told beside.
            yield b"\x0a\x0c\x0a\x02a1\x32\x06\x0a\x04\x12\x02\x08\x02\x12\x0a\x0a\x04info\x12\x02{}"


def main(name: str, arguments: Sequence[str]) -> None:
    """Hand one target to libFuzzer, with its words and seeds, in a directory of its own in $TMPDIR.

    Ends the process: with 0, or otherwise where the target broke.
    """
    directory = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS[name])
    (directory / "words").write_text("".join(f'"{word}"\n' for word in escaped))
    inputs = directory / "corpus"
    inputs.mkdir()
    for number, seed in enumerate(seeds(name)):
        (inputs / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-dict={directory}/words", *arguments, str(inputs)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit("\n".join(f"{name}: {target.__doc__}" for name, target in TARGETS.items()))
    main(sys.argv[1], sys.argv[2:])
