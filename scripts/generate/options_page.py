"""What the documentation has from the program's own tables.

`python -m scripts.generate.options_page > docs/options.md` writes the page, and
`python -m scripts.generate.options_page docs/cni.md` updates the table of annotations in that page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from istio_init.cli.typer_options import default_text
from istio_init.options.annotations import ANNOTATIONS, Annotation
from istio_init.options.table import GROUPS, OPTIONS, Option

HEAD = """# Options

Generated from `istio_init/options/table.py` by `python -m scripts.generate.options_page`; don't edit it by hand.

What counts is, in this order: the command line, the environment variables in the order listed, the default.
An empty variable counts as unset; a variable's value is checked as an argument is. A switch is given as
`--flag`, `--flag=true`, `--flag=false` or `--no-flag`. Lists are separated by commas; doubled and trailing
commas don't count. Ports may be ranges, `4000-4003` or `4000:4003`.

Exit codes: 0 done (or nothing to do), 1 an error, 126 the validation failed, 255 the command line or the
environment could not be understood.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for group in GROUPS:
        parts.append(f"\n## {group}\n\n| flag | variables | default | meaning |\n| --- | --- | --- | --- |\n")
        parts.extend(_row(each) for each in OPTIONS if each.group == group)
    return "".join(parts)


def _row(each: Option) -> str:
    flag = f"`--{each.flag}`" + (f", `-{each.short}`" if each.short else "")
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
