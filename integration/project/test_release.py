"""scripts/release builds the files of a release from a clean clone, twice the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

from integration.kit.program import ROOT
from istio_init import __version__


def clone(directory: Path) -> Path:
    """A clone of the last commit."""
    tree = directory / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    return tree


def released(tree: Path, out: Path) -> str:
    done = subprocess.run(
        ["scripts/release", "--rehearse", "--without-images", str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (out / "SHA256SUMS").read_text()


def test_two_releases_of_a_commit_are_the_same(tmp_path: Path) -> None:
    tree = clone(tmp_path)
    sums = released(tree, tmp_path / "first")
    assert released(tree, tmp_path / "second") == sums
    names = {line.split()[1] for line in sums.splitlines()}
    assert {
        f"istio_init-{__version__}-py3-none-any.whl",
        f"istio_init-{__version__}.tar.gz",
        f"istio-init-cni-{__version__}.tgz",
    } <= names
    assert any(name.startswith(f"istio-init-cni-{__version__}-linux-") for name in names)


def test_what_is_not_committed_is_not_released(tmp_path: Path) -> None:
    tree = clone(tmp_path)
    (tree / "file").touch()
    done = subprocess.run(
        ["scripts/release", str(tmp_path / "out")], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "release: the working tree has changes: commit or stash them first\n"


def test_a_version_that_the_changelog_lacks_is_refused(tmp_path: Path) -> None:
    tree = clone(tmp_path)
    log = tree / "CHANGELOG.md"
    log.write_text(log.read_text().replace(f"## [{__version__}]", "## [Unreleased]"))
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-am", "test"], cwd=tree, check=True)
    done = subprocess.run(
        ["scripts/release", str(tmp_path / "out")], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"CHANGELOG.md has no section [{__version__}]" in done.stderr
