"""docs/cni.md: its tables are the program's, and what needs no root prints what the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from istio_init.cni.node import conflist
from istio_init.cni.plugin import plugin, protocol
from istio_init.cni.plugin.settings import settings
from scripts.generate.options_page import filled
from tests.cni.test_deploy import SCHEMA, values_of

PAGE = (Path(__file__).parents[2] / "docs" / "cni.md").read_text()
JSON = re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# What the session on the page exports.
ENVIRONMENT = {
    "CNI_CONTAINERID": "a1b2",
    "CNI_NETNS": "/var/run/netns/istio-init-no-such",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
}
CODES = {
    protocol.INCOMPATIBLE_VERSION, protocol.ENVIRONMENT, protocol.DECODING, protocol.CONFIGURATION,
    protocol.TRY_AGAIN, protocol.UNAVAILABLE, protocol.FAILED, protocol.DRIFTED, protocol.FAULT,
}  # fmt: skip


def test_the_annotations_are_the_tables() -> None:
    assert "<!-- annotations -->\n| annotation |" in PAGE
    assert filled(PAGE) == PAGE


def first_column(head: str) -> set[str]:
    """The first cells of the table whose head begins so."""
    body = PAGE.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    assert body
    return {line.split("|")[1].strip().strip("`") for line in body}


def test_the_keys_are_those_that_the_chart_knows() -> None:
    recorded = {path[1:].replace("/", ".") for path, _ in values_of(SCHEMA["properties"]["plugin"])}
    # The runtime's own way to hand options on, and what is only valid together.
    assert first_column("key") == recorded - {"type", "kubernetes"} | {"args.istio"}


def test_the_codes_are_those_that_are_used() -> None:
    assert first_column("code") == {str(code) for code in CODES}


def test_the_list_is_one_and_the_entry_in_it_is_understood() -> None:
    assert conflist.types(JSON[0])[-1] == conflist.PLUGIN
    entry = conflist.plugin_entry(JSON[0])
    assert entry
    chosen = settings(entry)
    assert chosen.defaults == {"redirect_dns": "true"}
    assert chosen.exclude_namespaces == ("istio-system", "kube-system")


@pytest.mark.parametrize("command", ["CNI_COMMAND=VERSION", "sed s/8080/http/ pod.json | CNI_COMMAND=ADD"])
def test_what_the_page_shows_is_printed(tmp_path: Path, command: str) -> None:
    shown = re.search(rf"^\$ {re.escape(command)} istio-init-cni.*\n(.*)\n", PAGE, re.MULTILINE)
    assert shown
    document: dict[str, Any] = json.loads(JSON[1].replace("8080", "http"))
    document |= {"run_dir": str(tmp_path / "run"), "log_file": ""}
    data = b"" if "VERSION" in command else json.dumps(document).encode()
    name = command.rpartition("CNI_COMMAND=")[2]
    assert plugin.answer({**ENVIRONMENT, "CNI_COMMAND": name}, data)[1] == shown[1] + "\n"
