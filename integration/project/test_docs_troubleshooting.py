"""docs/troubleshooting.md and docs/migration.md in a pod: their commands run, and what a row names is what is found.

The pod is a namespace; where a page has a container's id, the namespace's path is put in its place.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from integration.kit.asking import Answer, ask
from integration.kit.namespace import Namespace
from integration.kit.pod import applied, options_of
from integration.kit.program import ROOT

TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
MIGRATION = (ROOT / "docs" / "migration.md").read_text()
RULES = "-u 1337 -i '*' -b '*' -d 15020,15021,15090 --no-enable-ipv6"
OWN = "192.0.2.10"
QUESTION = ("explain", "--live", "--outbound", "--to", "198.51.100.7:443")


class Cause(NamedTuple):
    """Rules, what else is done to the namespace, and the question by which it shows."""

    rules: str = RULES
    commands: tuple[str, ...] = ()
    question: tuple[str, ...] = QUESTION


# By the first column of the page's first table.
CAUSES = {
    "-m owner --uid-owner 1337 -j RETURN": Cause(question=(*QUESTION, "--uid", "1337")),
    "-m owner --gid-owner 1337 -j RETURN": Cause(question=(*QUESTION, "--uid", "1000", "--gid", "1337")),
    "-d CIDR -j RETURN": Cause(rules=f"{RULES} -x 198.51.100.0/24"),
    "--dport PORT -j RETURN": Cause(rules=f"{RULES} -o 443"),
    "-o lo ... ! --uid-owner 1337 -j RETURN": Cause(question=("explain", "--live", "--outbound", "--to", f"{OWN}:80")),
    "-i NAME -j RETURN": Cause(f"{RULES} -c eth0", question=("explain", "--live", "--inbound", "--to", ":80")),
    "none of Istio's rules": Cause(rules=""),
    "a rule of another program": Cause(commands=("iptables-legacy -w -t nat -I OUTPUT -p tcp -j ACCEPT",)),
}


def pod(namespace: Namespace) -> None:
    """An interface and a route, as a pod has them."""
    for command in (
        "link add eth0 type veth peer name far", f"address add {OWN}/24 dev eth0", "link set far up",
        "link set eth0 up", "route add default dev eth0",
    ):  # fmt: skip
        namespace.run("ip", *command.split())


def first_column(page: str, heading: str) -> list[str]:
    """The first cells of the table under a heading."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [row.split(" | ")[0].strip("| `") for row in rows[2:]]


def deciding(report: Any) -> str:  # noqa: ANN401 (JSON)
    """The last rule that the packet matched on its first way; empty where it matched none."""
    steps = [step for each in report["legs"][0]["way"] for step in each.get("steps", ()) if step.get("matched")]
    return f"{steps[-1]['rule']}" if steps else ""


def test_every_cause_of_a_bypass_is_planted() -> None:
    assert first_column(TROUBLE, "A connection bypasses the sidecar") == [*CAUSES]


@pytest.mark.parametrize("row", CAUSES)
def test_a_bypass_shows_the_rule_that_the_page_names(namespace: Namespace, row: str) -> None:
    cause = CAUSES[row]
    pod(namespace)
    if cause.rules:
        namespace.inside(lambda: applied(options_of(cause.rules)))
    for command in cause.commands:
        namespace.run(*command.split())
    answer = ask(namespace, *cause.question, *shlex.split(RULES), "--output", "json")
    report = answer.document
    assert report["verdict"] == "not captured"
    rule = deciding(report)
    if "-j" in row:
        parts = [re.escape(part) for part in re.split(r" ?(?:CIDR|PORT|NAME|\.\.\.) ?", row) if part]
        assert re.search(".*".join(parts), rule), rule
    else:
        assert ("ISTIO" in rule, bool(rule)) == (False, row == "a rule of another program")


def run(namespace: Namespace, command: str, directory: Path) -> Answer:
    """A command of a page, with the pod's namespace and a call in the place of what a reader puts there."""
    words = shlex.split(command, comments=True)
    text = shlex.join(words[1:]).replace("--container ID", f"--netns {namespace.path}")
    text = text.replace("HOST:PORT", "198.51.100.7:443").replace("pod.json", str(directory / "pod.json"))
    return ask(namespace, *shlex.split(text))


def written(directory: Path) -> None:
    """The pod's manifest, with the init container that made its rules."""
    container = {"name": "istio-init", "image": "istio-init", "args": ["istio-iptables", *shlex.split(RULES)]}
    proxy = {"name": "istio-proxy", "image": "a", "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}}
    spec = {"initContainers": [container], "containers": [{"name": "app", "image": "a"}, proxy]}
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    (directory / "pod.json").write_text(json.dumps(value))


def test_the_three_questions_are_answered(namespace: Namespace, tmp_path: Path) -> None:
    pod(namespace)
    written(tmp_path)
    block = re.search(r"^```\n(istio-init check.*?)^```", TROUBLE, re.MULTILINE | re.DOTALL)
    assert block
    questions = block[1].splitlines()
    assert [line.split()[1] for line in questions] == ["check", "explain", "doctor"]
    assert run(namespace, questions[0], tmp_path).output.startswith("absent (")
    namespace.inside(lambda: applied(options_of(RULES)))
    check, explain, doctor = (run(namespace, line, tmp_path) for line in questions)
    assert check.output.startswith("in place (")
    assert explain.output.startswith("Verdict: captured: ")
    assert doctor.output.startswith("these options ")


def test_the_check_before_a_migration(namespace: Namespace, tmp_path: Path) -> None:
    pod(namespace)
    written(tmp_path)
    lines = [line for line in MIGRATION.splitlines() if line.startswith("istio-init check ")]
    assert lines
    namespace.inside(lambda: applied(options_of(RULES)))
    assert all(run(namespace, line, tmp_path).code == 0 for line in lines)
