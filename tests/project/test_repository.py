"""What says the same thing in two places of the repository says it alike: versions, checks, Pythons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from istio_init import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# What a step may run, beside actions: our scripts, and what starts the release's upload.
PERMITTED = re.compile(
    r"(sudo )?scripts/[a-z]+( |$)|gh release create |sudo apt-get update && sudo apt-get install --yes "
)


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return loaded


def test_the_chart_and_the_manifests_have_the_programs_version() -> None:
    chart = yaml.safe_load((ROOT / "deploy/helm/istio-init-cni/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    texts = [*(ROOT / "deploy").glob("*.yaml"), *(ROOT / "docs").rglob("*.md")]
    tags = {tag for text in texts for tag in re.findall(r"istio-init(?:-cni)?:(\d[\w.]*)", text.read_text())}
    assert tags == {__version__}


def test_the_pythons_that_are_tested_are_those_that_the_package_names() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = {f"3.{name.removeprefix(prefix)}" for name in PROJECT["classifiers"] if name.startswith(prefix)}
    assert set(workflow("test.yml")["jobs"]["unit"]["strategy"]["matrix"]["python"]) == named
    assert PROJECT["requires-python"] == f">={min(named)}"


def test_a_commit_hook_runs_each_check_of_scripts_lint() -> None:
    configured = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [
        hook["entry"] for repository in configured if repository["repo"] == "local" for hook in repository["hooks"]
    ]
    checks = re.search(r"\|\| set -- (.*)$", (ROOT / "scripts/lint").read_text(), re.MULTILINE)
    assert checks
    assert hooks == [f"scripts/lint {check}" for check in checks[1].split()]


def test_workflows_call_scripts_and_have_no_logic_of_their_own() -> None:
    steps = [
        step
        for path in WORKFLOWS
        for job in workflow(path.name)["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert len(steps) >= 3
    assert [step["run"] for step in steps if not PERMITTED.match(step["run"]) or "\n" in step["run"]] == []


def test_what_is_to_be_installed_is_an_extras_and_never_a_package_that_nobody_has_published() -> None:
    texts = [path for room in ("istio_init", "docs", "deploy") for path in (ROOT / room).rglob("*") if path.is_file()]
    texts = [each for each in (*texts, *ROOT.glob("*.md")) if each.suffix in {".py", ".md", ".yaml", ".html"}]
    lines = re.findall(r"pip3? install [^\n]+", "\n".join(each.read_text() for each in texts))
    assert [line for line in lines if re.match(r"pip3? install ['\"]?istio-init", line)] == []
    # From a checkout, with quotes: a shell takes brackets for a pattern.
    assert {name for line in lines for name in re.findall(r"\[(.*?)\]", line)} <= set(PROJECT["optional-dependencies"])
    assert [line for line in lines if ".[" in line and "'.[" not in line] == []
    extras = {each for listed in PROJECT["optional-dependencies"].values() for each in listed}
    named = {name for line in lines for name in re.findall(r"'([^'\[]+>=[^']+)'", line)}
    assert len(named) >= 5
    assert named <= extras


def test_every_owner_of_code_owns_something_that_is_there() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    paths = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert [path for path in paths if path != "*" and not (ROOT / path.strip("/")).exists()] == []
