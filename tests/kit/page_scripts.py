"""The page's scripts in Node, without a browser: packets in, answers out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from istio_init.draw import html
from istio_init.draw.html.document import WALK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Each line of input is a model, a family and packets as they are typed into the form; each line of output has their
# answers, null for what the form refuses.
HARNESS = """
const listed = (highlight) => Object.fromEntries(Object.entries(highlight).map(([part, keys]) => [part, [...keys]]));
function answer(model, family, typed) {
  try {
    const described = explain(model, typed, family);
    const links = model.families[parseRequest(model, typed).family ?? family]?.links ?? {};
    const command = commandFor(model, typed, family);
    return { described, command, highlights: highlightsOf(links, described).map(listed) };
  } catch (error) {
    if (error instanceof Refused) {
      return null;
    }
    throw error;
  }
}
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const { model, family, packets } = JSON.parse(line);
  console.log(JSON.stringify(packets.map((typed) => answer(model, family, typed))));
});
"""


def source(name: str) -> str:
    """The text of one script."""
    return Path(html.__file__).with_name(f"{name}.js").read_text(encoding="utf-8")


def answers(batches: Sequence[Mapping[str, Any]], changed: Mapping[str, str] | None = None) -> list[list[Any]]:
    """The scripts' answers to batches of packets; `changed` replaces scripts by other texts, by name."""
    texts = ['"use strict";', *((changed or {}).get(name) or source(name) for name in WALK), HARNESS]
    lines = "".join(json.dumps(batch) + "\n" for batch in batches)
    ran = subprocess.run(
        ["node", "--stack-size=2000", "-e", "\n".join(texts)], input=lines, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]
