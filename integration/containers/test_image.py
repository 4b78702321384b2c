"""What is in the image, and that the whole program works from it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from integration.containers.conftest import Built, build
from integration.containers.engine import ROOT, Engine, tool
from integration.kit.program import VERBS

ARTICLE = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"]
PREVIEW = [*ARTICLE, "-d", "15090,15020", "--dry-run", "--no-enable-ipv6"]
COMMANDS = ("istio-iptables", "istio-clean-iptables", "istio-init", "pilot-agent")

MEGABYTE = 1_000_000


class ImageRun:
    """What came of one run of the image."""

    def __init__(self, engine: Engine, image: str, *arguments: str, entry: str = "", user: str = "") -> None:
        options = ["--network=none", "--read-only", f"--user={user}", *([f"--entrypoint={entry}"] if entry else [])]
        command = [tool("docker"), "run", "--rm", *options, image, *arguments]
        done = subprocess.run(command, env=engine.environment, capture_output=True, text=True, check=False)
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def files(engine: Engine, image: Built) -> dict[str, tarfile.TarInfo]:
    return contents(engine, image.tag)


def contents(engine: Engine, tag: str) -> dict[str, tarfile.TarInfo]:
    """Everything in an image's layers, by path."""
    result: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=io.BytesIO(engine.cli("save", tag))) as saved:
        for layer in json.load(saved.extractfile("manifest.json"))[0]["Layers"]:  # type: ignore[arg-type]
            with tarfile.open(fileobj=saved.extractfile(layer)) as tree:
                result |= {member.name: member for member in tree}
    return result


def test_it_is_small(image: Built) -> None:
    assert image.size <= 18 * MEGABYTE
    assert image.compressed <= 9 * MEGABYTE


def test_nothing_in_it_runs_but_the_program(files: dict[str, tarfile.TarInfo]) -> None:
    runnable = {name for name, file in files.items() if not file.isdir() and file.mode & 0o111}
    libraries = {name for name in runnable if ".so" in name}
    assert runnable - libraries == {f"usr/local/bin/{name}" for name in COMMANDS} | {"usr/bin/python3"}
    assert {name for name in libraries if not Path(name).name.startswith(("lib", "ld-"))} == set()


def test_nothing_in_it_is_writable_or_gives_rights(files: dict[str, tarfile.TarInfo]) -> None:
    for name, file in files.items():
        assert (file.uid, file.gid) == (0, 0), name
        assert file.issym() or file.mode & 0o6022 == 0, f"{name}: {file.mode:o}"


def test_no_sources_and_no_tests(files: dict[str, tarfile.TarInfo]) -> None:
    assert not [name for name in files if name.endswith((".py", ".a", ".h"))]
    assert not [name for name in files if "/test" in name.removeprefix("usr/lib/istio-init")]


def test_every_module_of_the_program_is_there_and_loads(engine: Engine, image: Built, sources: Path) -> None:
    names = {
        ".".join(path.relative_to(sources).with_suffix("").parts).removesuffix(".__init__")
        for path in (sources / "istio_init").rglob("*.py")
        # The second engine, the runtime's messages and the agent need libraries that are not in this image.
        if path.name not in {"__main__.py", "cri_pb2.py"}
        and "python_iptables_" not in path.name
        and path.parent.name != "agent"
    }
    launcher = (sources / "image/launcher.py").read_text().partition("from istio_init")[0]
    script = f"{launcher}\nfor name in sys.argv[1:]: __import__(name)"
    message = ImageRun(engine, image.tag, "-IS", "-c", script, *sorted(names), entry="/usr/bin/python3")
    assert (message.code, message.err) == (0, "")


def test_every_library_loads(engine: Engine, image: Built, files: dict[str, tarfile.TarInfo]) -> None:
    names = [f"/{name}" for name in files if ".so" in name and "ld-" not in name and "ld.so" not in name]
    library = "import sys\nsys.path.append('/usr/lib/istio-init/library.zip')"
    script = f"{library}\nimport ctypes\nfor name in sys.argv[1:]: ctypes.CDLL(name)"
    message = ImageRun(engine, image.tag, "-IS", "-c", script, *names, entry="/usr/bin/python3")
    assert (message.code, message.err) == (0, "")


def test_what_it_says_of_itself(engine: Engine, image: Built) -> None:
    facts = json.loads(engine.cli("inspect", image.tag))[0]["Config"]
    assert facts["Entrypoint"] == ["/usr/local/bin/istio-iptables"]
    assert facts["Healthcheck"] == {"Test": ["NONE"]}
    assert facts["Cmd"] is None
    assert facts["User"] == ""
    labels = facts["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_the_same_input_makes_the_same_layers(
    engine: Engine, base: str, image: Built, sources: Path, tmp_path: Path
) -> None:
    """From a copy of the sources with other time stamps and modes, without the cache."""
    shutil.copytree(sources, tmp_path, copy_function=shutil.copyfile, dirs_exist_ok=True)
    (tmp_path / "scripts/image").chmod(0o700)
    again = build(engine, tmp_path, base, "localhost/istio-init:again", "--no-cache")
    first, second = (json.loads(engine.cli("inspect", tag))[0]["RootFS"] for tag in (image.tag, again.tag))
    assert first == second


@pytest.mark.parametrize(
    "path",
    ["Dockerfile", "scripts/bundle-cni", *(f"image/{path.name}" for path in sorted((ROOT / "image").glob("*.*")))],
)
def test_no_architecture_is_named(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not [name for name in ("x86", "amd64", "arm64", "aarch64") if name in text]


def test_a_dry_run_prints_the_same_as_outside(engine: Engine, image: Built) -> None:
    command = [sys.executable, "-m", "istio_init", *PREVIEW]
    outside = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for user in ("0", "1337", "65534"):
        message = ImageRun(engine, image.tag, *PREVIEW, user=user)
        assert (message.code, message.err, message.out) == (0, "", outside)


def test_a_page_is_the_same_as_outside(engine: Engine, image: Built) -> None:
    words = ["draw", *ARTICLE, "--no-enable-ipv6", "--format", "html"]
    command = [*VERBS, *words]
    outside = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    message = ImageRun(engine, image.tag, *words, entry="istio-init")
    assert (message.code, message.err) == (0, "")
    assert message.out == outside


@pytest.mark.parametrize(
    ("entry", "before"),
    [
        ("", ["istio-iptables"]),
        ("", ["pilot-agent", "istio-iptables"]),
        ("istio-iptables", []),
        ("pilot-agent", ["istio-iptables"]),
        ("/usr/local/bin/pilot-agent", ["istio-iptables"]),
    ],
)
def test_it_is_called_as_istio_calls_its_own(engine: Engine, image: Built, entry: str, before: list[str]) -> None:
    message = ImageRun(engine, image.tag, *before, *PREVIEW, entry=entry)
    assert (message.code, message.err) == (0, "")
    assert message.out.startswith("*nat\n")


@pytest.mark.parametrize(("entry", "before"), [("istio-clean-iptables", []), ("", ["istio-clean-iptables"])])
def test_cleaning_has_a_name_of_its_own(engine: Engine, image: Built, entry: str, before: list[str]) -> None:
    message = ImageRun(engine, image.tag, *before, *PREVIEW, entry=entry)
    assert (message.code, message.out, message.err) == (0, "", "")


def test_help_and_mistakes(engine: Engine, image: Built) -> None:
    message = ImageRun(engine, image.tag, "--help")
    assert (message.code, message.err) == (0, "")
    assert "--istio-inbound-interception-mode" in message.out
    assert "apply" in ImageRun(engine, image.tag, "--help", entry="istio-init").out
    message = ImageRun(engine, image.tag, "--run-validatoin")
    assert message.code == 255
    assert "--run-validation" in message.err
    message = ImageRun(engine, image.tag, "-p", "70000")
    assert message.code == 1
    assert "70000" in message.err
    message = ImageRun(engine, image.tag, "proxy", "sidecar", entry="pilot-agent")
    assert message.code == 255
    assert message.err.startswith("pilot-agent: 'proxy'")


def test_the_engine_that_is_left_out_says_how_to_get_it(engine: Engine, image: Built) -> None:
    message = ImageRun(engine, image.tag, *ARTICLE, "--iptables-engine", "python-iptables")
    assert message.code == 1
    assert "pip install 'python-iptables" in message.err


def test_the_bill_of_materials_names_every_package(
    engine: Engine, image: Built, files: dict[str, tarfile.TarInfo]
) -> None:
    saved = engine.cli("save", image.tag)
    bills = [subprocess.run(["scripts/sbom"], cwd=ROOT, input=saved, capture_output=True, check=True) for _ in "12"]
    assert bills[0].stdout == bills[1].stdout
    bill = json.loads(bills[0].stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {(each["purl"].partition("/")[0], each["name"].lower(), each["version"]) for each in bill["components"]}
    lines = (ROOT / "image/requirements.txt").read_text().splitlines()
    pins = [line.split()[0].split("==") for line in lines if not line.startswith("#")]
    assert {entry for entry in listed if entry[0] == "pkg:pypi"} == {("pkg:pypi", *pin) for pin in pins}
    debian = {Path(name).name for name in files if name.startswith("var/lib/dpkg/status.d/") and files[name].isfile()}
    assert {name for kind, name, _ in listed if kind == "pkg:deb"} == debian
    assert {"libc6", "libip4tc2", "libip6tc2", "python3.11-minimal"} <= debian
    assert not debian & {"libnftables1", "libjansson4", "libnftnl11", "libgmp10"}


def test_everything_in_it_comes_with_its_licence(files: dict[str, tarfile.TarInfo]) -> None:
    debian = {Path(name).name for name, file in files.items() if "dpkg/status.d/" in name and file.isfile()}
    assert {f"usr/share/doc/{name}/copyright" for name in debian} <= set(files)
    assert "usr/share/doc/istio-init/LICENSE" in files
    for name in files:
        if name.endswith(".dist-info/METADATA"):
            directory = name.removesuffix("METADATA")
            assert [each for each in files if each.startswith(directory) and "LICENSE" in each], name
