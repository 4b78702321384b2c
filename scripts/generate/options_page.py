"""What the documentation has from the program's own tables.

`python -m scripts.generate.options_page > docs/options.md` writes the page, and
`python -m scripts.generate.options_page docs/cni.md` updates the table of annotations in that page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from istio_init.cli.typer_parameters import default_text
from istio_init.options.annotations import ANNOTATIONS, Annotation
from istio_init.options.table import GROUPS, OPTIONS, Option

HEAD = """# Options

Generated from `istio_init/options/table.py` by `python -m scripts.generate.options_page`; don't edit it by hand.

Precedence: the command line, the environment variables in the order listed, the default. An empty variable counts
as unset; a variable's value is checked as an argument is, except that a switch's variable which is not true or
false means false, with a warning, as in Istio's program, and one that is no duration or number where one is needed
is ignored, with a warning (`--strict-env` refuses both). A switch is given as `--flag`, `--flag=true`,
`--flag=false` or `--no-flag`; `--flag false` is true, and the word that belongs to no flag is ignored with a
warning. Short flags may be joined (`-np 15001`). Lists are separated by commas; white space around entries, doubled
and trailing commas don't count. Ports may be ranges, `4000-4003` or `4000:4003`.

Flags of Istio's program that mean nothing here are accepted: `--vklog`, `--log_rotate`, `--log_rotate_max_age`,
`--log_rotate_max_size`, `--log_rotate_max_backups`, `--host-nsenter-exec`, `--iptables-trace-logging`,
`--restore-format` (`-f`).

Exit codes are Istio's: 0 done (or nothing to do); 1 an error, such as a wrong CIDR, port, mode or user; 126 the
validation failed; 255 the command line can't be parsed: an unknown flag, a missing value, or a switch, number or
duration (`--iptables-probe-port`, `--probe-timeout`, `--wait`) that is none.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for group in GROUPS:
        parts.append(f"\n## {group}\n\n| flag | variables | default | meaning |\n| --- | --- | --- | --- |\n")
        parts.extend(_row(each) for each in OPTIONS if each.group == group)
    return "".join(parts)


def _row(each: Option) -> str:
    flag = ", ".join(f"`{name}`" for name in each.all_names())
    value = "" if each.switch else f" {each.metavar}"
    variables = ", ".join(f"`{variable}`" for variable in each.variables) or "none"
    default = default_text(each)
    help_text = each.help.replace("|", "\\|")
    return f"| {flag}{value} | {variables} | {f'`{default}`' if default else ''} | {help_text} |\n"


def annotation_table() -> str:
    """The annotations as a table in Markdown."""
    head = "| annotation | sets | where a pod has none | meaning |\n| --- | --- | --- | --- |\n"
    return head + "".join(map(_annotation, ANNOTATIONS))


def _annotation(each: Annotation) -> str:
    name = f"`{each.name}`" + (f", `{'.'.join(each.path)}`" if each.path else "")
    unset = f"`{each.unset}`" if each.unset else ""
    also = f"always also `{each.also}`" if each.also else ""
    flag = f"`{each.flag}`" if each.flag else ""
    return f"| {name} | {flag} | {', '.join(filter(None, (unset, also)))} | {each.help} |\n"


def filled(text: str) -> str:
    """A page with the table of annotations, in the place of the one behind its mark, as it is now."""
    return re.sub(r"(?m)(?<=^<!-- annotations -->\n)(^\|.*\n)+", lambda _: annotation_table(), text)


if __name__ == "__main__":
    if sys.argv[1:]:
        path = Path(sys.argv[1])
        path.write_text(filled(path.read_text()))
    else:
        sys.stdout.write(page())
