"""What `apply` and `clean` print as JSON; the other verbs' answers are validated wherever a test asks them."""

from __future__ import annotations

import subprocess
from typing import Any

from integration.kit.namespace import Namespace
from integration.kit.program import VERBS, environment
from tests.kit.schemas import validated

RULES = ("-u", "1337", "-i", "*", "-b", "*")


def answer(namespace: Namespace, *argv: str) -> tuple[int, Any]:
    """The exit code, and the document; nothing goes to standard error."""
    command = ["ip", "netns", "exec", namespace.name, *VERBS, *argv, "--output", "json"]
    done = subprocess.run(command, env=environment(namespace), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, validated(done.stdout, "run")


def test_a_run_is_one_document(namespace: Namespace) -> None:
    done = [answer(namespace, verb, *RULES) for verb in ("apply", "apply", "clean", "clean")]
    assert [(code, value["code"]) for code, value in done] == [(0, 0)] * 4
    summaries = [value["summary"] for _, value in done]
    assert summaries[0].startswith("applied (no Istio rules found)")
    assert summaries[1].startswith("in place, nothing written")
    assert summaries[2].startswith("cleaned up")
    assert summaries[3].startswith("no Istio rules found")
    assert {each["level"] for _, value in done for each in value["log"]} == {"info"}


def test_a_refusal_is_in_the_document(namespace: Namespace) -> None:
    assert answer(namespace, "apply", *RULES)[0] == 0
    code, value = answer(namespace, "apply", *RULES, "-d", "80")
    assert (code, value["code"]) == (1, 1)
    assert "--reconcile" in value["summary"]
    assert value["log"][-1] == {"level": "error", "message": value["summary"]}
