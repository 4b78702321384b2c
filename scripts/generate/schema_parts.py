"""What several JSON schemas have in common: purposes of rules, packets and their paths."""

from __future__ import annotations

from scripts.generate.schema_kinds import (
    body,
    flag,
    listed,
    maybe,
    maybe_ref,
    maybe_whole,
    of_kind,
    one_of,
    perhaps,
    ref,
    text,
    texts,
    whole,
)

FAMILY = ["ipv4", "ipv6"]
HOOK = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]
STATE = ["in place", "drifted", "absent"]
ENDS = ["outbound", "inbound", "tunnel", "dns", "application", "wire", "forwarded", "dropped", "queued", "undecided"]

PURPOSE = body(
    concern=text("the part of the plan that it belongs to; empty where it has none"),
    text=text("what the rule is for"),
    number=maybe_whole("its number among the nine rules of ISTIO_OUTPUT"),
    steps=maybe("the steps of the article that it takes part in"),
    flags=texts("the flags that made it"),
    annotations=texts("the pod annotations that set these flags"),
)
PACKET = body(
    hook=one_of("the netfilter hook that it is at", HOOK),
    protocol=text("tcp, udp or another name, or a number"),
    source=text("an address"),
    destination=text("an address"),
    source_port=whole("0 where the protocol has no ports"),
    destination_port=whole("0 where the protocol has no ports"),
    in_interface=text("empty where it came by none"),
    out_interface=text("empty where it is not known yet"),
    uid=maybe_whole("whose socket sent it"),
    gid=maybe_whole("whose socket sent it"),
    mark=whole("the packet's mark"),
    ctstate=text("the state of its connection: NEW, ESTABLISHED, RELATED, INVALID or UNTRACKED"),
    connmark=whole("its connection's mark"),
    zone=maybe_whole("the conntrack zone"),
    tracked=flag("whether connection tracking has seen it"),
    translated=texts("the sides that were translated"),
    redirected=flag("whether REDIRECT or DNAT changed its destination to this machine"),
    tproxy_port=whole("the port of the transparent socket that it goes to; 0 for none"),
    reply=flag("whether it goes from the called side to the caller"),
)
PACKET = perhaps(
    PACKET, unclear={"type": "object", "description": "by field, all that a value may be which no rule determines"}
)
STEP = {
    "oneOf": [
        body(
            table=text("the table"),
            chain=text("the chain"),
            number=whole("the rule's number, from 1"),
            rule=text("the rule as iptables-save has it"),
            matched=of_kind(["boolean", "null"], "null where it cannot be decided"),
            why=text("what the rule did, or why it did not match"),
            purpose=maybe_ref("purpose"),
        ),
        body(table=text("the table"), skipped=text("why no rule of the table is met")),
        body(
            table=text("the table"),
            chain=text("the chain that ended"),
            back_to=maybe("the chain that goes on"),
            policy=maybe("what a built-in chain does with the packet"),
        ),
    ]
}
PASSED = {
    "oneOf": [
        body(
            hook=one_of("a netfilter hook", HOOK),
            outcome=one_of("its verdict", ["ACCEPT", "DROP", "QUEUE", "UNDECIDED"]),
            steps=listed(ref("step"), "every rule that was tried, in order"),
        ),
        perhaps(
            body(
                routing=one_of("a routing decision, and the hook behind it", HOOK),
                in_interface=text("where it came in"),
                out_interface=text("where it leaves"),
                changed=flag("whether it leaves by another interface than before"),
                refused=maybe("why the kernel drops it here, whatever the rules"),
                policy_rule={
                    "anyOf": [body(mark=whole("the mark"), table=whole("the routing table")), {"type": "null"}],
                    "description": "the policy rule that decided",
                },
            ),
            unclear=text("why the way that it takes is not known, where that is so"),
        ),
    ]
}
LEG = body(
    sender=text("who sends it"),
    packet=ref("packet"),
    way=listed(ref("passed"), "hooks and routing decisions in order"),
    end=one_of("where it ends", ENDS),
    arrived=ref("packet"),
    fate=text("where it ends and why, in a sentence"),
)
EXPLAIN = {
    "legs": listed(ref("leg"), "the packet's connection, then those that the proxy makes because of it"),
    "verdict": text("captured, not captured, addressed to the proxy, loop, dropped, queued or undecided"),
    "end": one_of("where the last connection ends", ENDS),
    "loop": maybe("the listener that is reached again"),
    "stop": maybe("why nothing follows"),
    "fate": text("where it ends and why, in a sentence"),
}
PASSAGE = body(
    listener=maybe("the listener's name"),
    filter_chain=maybe("the filter chain's name"),
    route=maybe("the route's name"),
    cluster=maybe("the cluster's name"),
    steps=listed(
        body(
            part=one_of(
                "the part of Envoy",
                ["listener", "listener filter", "filter chain", "filter", "route", "cluster", "endpoint"],
            ),
            text=text("what was chosen"),
            path=maybe("its place in the dump"),
            others=listed(
                body(name=text("an entry that was not chosen"), why=text("why"), path=maybe("its place in the dump")),
                "what was not chosen",
            ),
        ),
        "each decision in order",
    ),
    end=body(
        kind=one_of("how it ends", ["dials", "answers", "closes", "hangs", "undecided"]),
        flag=maybe("the response flag of Envoy's access log"),
        status=maybe_whole("the HTTP status"),
        text=text("the end in words"),
    ),
    dials=listed(
        body(
            **{
                "to": text("address and port"),
                "from": maybe("the source that Envoy binds to"),
                "mark": whole("the socket's mark"),
                "speaks": text("the kind of client that Envoy is"),
            }
        ),
        "the connections that Envoy makes",
    ),
    undecided=texts("what may change the answer and is not followed"),
)
PATH = body(
    stages=listed(
        {"oneOf": [body(kernel=ref("leg")), body(envoy=ref("passage"))]}, "the rules' and Envoy's parts in turn"
    ),
    end=text("where it ends"),
    flag=maybe("Envoy's response flag"),
    status=maybe_whole("the HTTP status"),
    loop=maybe("the listener that is reached again"),
    undecided=texts("what may change the answer and is not followed"),
    fate=text("where it ends and why, in a sentence"),
)
COMMON = {
    "purpose": PURPOSE,
    "packet": PACKET,
    "step": STEP,
    "passed": PASSED,
    "leg": LEG,
    "explain": body(**EXPLAIN),
    "passage": PASSAGE,
    "path": PATH,
}
