"""What Helm makes of our chart: Helm itself, which PyPI has as a library, in a process of its own.

`python -m tests.kit.helm DIRECTORY NAMESPACE` reads a list of values and prints a list of what comes of
each, {"text": ...} or {"error": ...}. A process of its own, since with Go's threads beside it nobody should fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def documents(text: str) -> list[Any]:
    """The objects of a text of YAML."""
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def template(chart: Path, namespace: str, *values: str) -> list[dict[str, str]]:
    """What `helm template` comes to for each of these values, as JSON."""
    command = [sys.executable, "-m", "tests.kit.helm", str(chart), namespace]
    document = json.dumps([json.loads(each) for each in values])
    done = subprocess.run(command, input=document, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: list[dict[str, str]] = json.loads(done.stdout)
    return result


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values laid over others, objects member by member, as Helm does it."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def main(chart: str, namespace: str) -> None:
    """Lint the chart, and render it with each of the values."""
    import helm_python

    # Of its severities 1 is advice (an icon), 2 a warning.
    result = [each for each in helm_python.lint(chart)["messages"] if each["severity"] > 1]
    assert not result, result
    report = []
    with helm_python.Chart.load(chart) as loaded:
        for values in json.load(sys.stdin):
            try:
                texts = loaded.render(values, name="release", namespace=namespace)
            except helm_python.HelmError as error:
                report.append({"error": str(error)})
            else:
                report.append({"text": "".join(f"---\n# Source: {name}\n{text}\n" for name, text in texts.items())})
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
