"""The manual pages are made from the tables, say all that these hold, and are what the wheel installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from istio_init.cli.app import app
from istio_init.cli.help_page import EXAMPLES
from istio_init.cni.plugin import settings
from istio_init.options.table import OPTIONS
from scripts.generate.man_pages import KEYS, PAGES, page, path

ROOT = Path(__file__).parents[2]
FIELDS = {each.field for each in OPTIONS}


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_made_from_the_tables(name: str) -> None:
    kept = (ROOT / "docs/man" / path(name)).read_text()
    assert kept == page(name), "python -m scripts.generate writes them anew"


def test_there_are_no_others() -> None:
    actual = {file for file in (ROOT / "docs/man").rglob("*") if file.is_file()}
    assert actual == {ROOT / "docs/man" / path(name) for name in PAGES}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {f"docs/man/{each}": f"share/man/{each}" for each in {path(name).split("/")[0] for name in PAGES}}


def test_every_option_and_every_verb_is_told() -> None:
    text = page("istio-iptables.1").replace("\\-", "-")
    entries = [line for line in text.splitlines() if line.startswith(".It Fl ")]
    assert len(entries) == len(OPTIONS)
    for each, entry in zip(sorted(OPTIONS, key=lambda each: each.flag), sorted(entries, key=_long), strict=True):
        assert entry.startswith(f".It Fl {each.short} , Fl -{each.flag}" if each.short else f".It Fl -{each.flag}")
    verbs = {str(command.name) for command in app({}).registered_commands}
    report = set(re.findall(r"^\.Ss (\w+)", page("istio-init.1"), re.MULTILINE))
    assert report == verbs | {"cni"}


def commands(top: object) -> list[tuple[list[str], Any]]:
    """Every verb by its words, those of groups too, with its command."""
    result = []
    for name, verb in get_command(top).commands.items():  # type: ignore[arg-type, attr-defined]
        for inner, one in getattr(verb, "commands", {"": verb}).items():
            result.append(([name, inner] if inner else [name], one))
    return result


def test_every_verb_has_a_page_with_its_flags_examples_and_exit_codes() -> None:
    for words, verb in commands(app({})):
        text = page(f"istio-init-{'-'.join(words)}.1").replace("\\-", "-")
        for parameter in verb.params:
            by_name = parameter.name in FIELDS and words[0] != "cni"
            shown = parameter.opts[0] if by_name else f"Fl {parameter.opts[0][1:]}"
            shown = parameter.metavar if parameter.param_type_name == "argument" else shown
            assert parameter.name == "help" or shown in text, (words, parameter.name)
        for _, example in EXAMPLES.get(" ".join(words), ()):
            assert example.replace("'", "\\(aq") in text
        assert ".Sh EXIT STATUS\n.Bl -tag -width Ds\n.It 0" in text


def _long(entry: str) -> str:
    return entry.partition("Fl -")[2]


def test_pages_refer_to_pages() -> None:
    for name in PAGES:
        for other, section in re.findall(r"^\.Xr (\S+) (\d)", page(name), re.MULTILINE):
            assert other in {"iptables", "nft"} or f"{other}.{section}" in PAGES


def test_every_key_of_the_plugins_configuration_is_told() -> None:
    source = Path(settings.__file__).read_text()
    own = r"kubernetes\.\w+|plugin_log_level|log_\w+|run_dir|agent|agent_\w+|exclude_namespaces|defaults|istio"
    keys = re.findall(rf'"({own})"', source)
    assert set(keys) == set(KEYS)
