"""Graphviz takes every picture in its language, however odd the names in it are."""

from __future__ import annotations

import shlex
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from istio_init.draw.dot import dot
from istio_init.draw.graph import build_graph
from istio_init.draw.highlight import highlights
from istio_init.model.rules import FAMILIES, Chain, Rule, Ruleset, Table, Verdict
from istio_init.model.unknown import Comment
from istio_init.simulate.purposes import purposes
from tests.kit.packets import ARTICLE, SERVER, Sidecar
from tests.kit.strategies import rulesets
from tests.planning.cases import CASES, argv

ENVOY = Sidecar(ARTICLE).envoy


def taken(text: str) -> str:
    """What Graphviz reads in the text, in its own spelling; it complains of nothing."""
    done = subprocess.run(["dot", "-Tdot"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_graphviz_draws_every_case() -> None:
    texts = []
    for name in CASES:
        sidecar = Sidecar(shlex.join(argv(name)))
        for ruleset in sidecar.plan.rulesets:
            drawing = build_graph(ruleset, purposes(sidecar.options, ruleset.family), sidecar.envoy)
            legs = highlights(sidecar.path(sidecar.outbound(SERVER, 443)), drawing) if ruleset.family == "ipv4" else ()
            texts.append(dot(drawing, legs))
    assert taken("".join(texts)).count("digraph") == len(texts)


@settings(max_examples=5)
@given(several=st.lists(st.sampled_from(FAMILIES).flatmap(rulesets), min_size=5, max_size=10))
def test_graphviz_draws_any_rules(several: list[Ruleset]) -> None:
    taken("".join(dot(build_graph(ruleset, {}, ENVOY)) for ruleset in several))


def test_graphviz_is_given_no_markup_of_others() -> None:
    rule = Rule((Comment('</TD></TR>"]; evil -> node ["&\x01'),), Verdict("DROP"))
    ruleset = Ruleset("ipv4", (Table("filter", (Chain("INPUT", (rule,), "ACCEPT"),)),))
    assert "evil ->" not in taken(dot(build_graph(ruleset, {}, ENVOY))).replace("evil -&gt;", "")
