"""Every JSON schema: the verb that prints it, what it is, and its fields."""

from __future__ import annotations

from scripts.generate.schema_kinds import (
    Schema,
    body,
    described,
    flag,
    listed,
    maybe,
    maybe_ref,
    maybe_whole,
    of_kind,
    one_of,
    ref,
    text,
    texts,
    whole,
)
from scripts.generate.schema_parts import EXPLAIN, FAMILY, HOOK, STATE

LOG = listed(
    body(level=one_of("its level", ["fatal", "error", "warn", "info", "debug"]), message=text("the line")),
    "the log lines in order",
)
FINDINGS = {"findings": texts("how the rules differ from the plan"), "warnings": texts("what else is worth knowing")}
CAPTURE = {"type": "object", "description": "the capture of the pod: the fields of a dry run with eBPF"}

# By the name that an answer's `schema` begins with: the verb that prints it, what it is, and its fields.
SCHEMAS: dict[str, tuple[str, str, dict[str, Schema]]] = {
    "check": (
        "check",
        "Whether the plan is in place.",
        {
            "state": one_of("how the namespace compares with the plan", STATE),
            "code": one_of("the exit code", [0, 3, 4]) | {"type": "integer"},  # type: ignore[list-item]
            "backend": text("the backend that was compared"),
            **FINDINGS,
        },
    ),
    "cni-change": (
        "cni install, cni uninstall",
        "What was done to the node.",
        {
            "verb": one_of("the verb", ["install", "uninstall"]),
            "changed": flag("whether anything was written or removed"),
            "log": LOG,
        },
    ),
    "cni-repair": (
        "cni repair",
        "The pods of the node and how they are captured.",
        {
            "code": whole("the exit code"),
            "pods": listed(
                body(
                    namespace=text("its namespace"),
                    pod=text("its name"),
                    uid=text("its uid"),
                    sandbox=text("the sandbox's id"),
                    state=text("captured, uncaptured, drifted, unknown, or why it is none of these"),
                    fixed=flag("whether this run captured it"),
                    why=text("the reason"),
                    differences=texts("how its rules differ from the plan"),
                    connections=whole("open connections that a capture cuts"),
                ),
                "every pod",
            ),
        },
    ),
    "cni-status": (
        "cni status",
        "Whether the plugin is in place on the node.",
        {
            "whole": flag("whether pods are captured"),
            "program": one_of("the plugin's program", ["present", "absent"]),
            "network": text("the file of the network that pods get; empty where there is none"),
            "entry": text("the plugin's entry in it: in place, differs, misplaced or absent"),
        },
    ),
    "doctor": (
        "doctor",
        "Whether this machine and namespace support the plan.",
        {
            "ok": flag("whether nothing fails"),
            "checks": listed(
                body(
                    name=text("what was checked"),
                    status=one_of("how it is", ["ok", "warn", "fail"]),
                    finding=text("what was found"),
                    matters=text("what it means; empty where all is well"),
                    remedy=text("what to do; empty where there is nothing to do"),
                ),
                "every check",
            ),
        },
    ),
    "draw": (
        "draw",
        "The chains as a graph; keys name rows, chains and ends.",
        {
            "family": one_of("whose rules", FAMILY),
            "chains": listed(
                body(
                    key=text("its key"),
                    table=text("its table"),
                    chain=text("its name"),
                    hook=of_kind(["string", "null"], "the hook that calls it", enum=[*HOOK, None]),
                    rows=listed(
                        body(
                            key=text("its key"),
                            number=maybe_whole("the rule's number; null for what the chain does otherwise"),
                            matches=text("which packets, in words"),
                            target=text("what is done, in words"),
                            to=maybe("the key of the chain or end that it leads to"),
                            rule=maybe("the rule as iptables-save has it"),
                            purpose=maybe_ref("purpose"),
                        ),
                        "its rules in order, then its end",
                    ),
                ),
                "table by table, callers first",
            ),
            "ends": listed(
                body(
                    key=text("its key"),
                    kind=text("inbound, outbound, dns, port, queued, dropped or alone"),
                    hook=of_kind(["string", "null"], "the hook that it belongs to", enum=[*HOOK, None]),
                    title=text("its title"),
                    text=text("what it is"),
                ),
                "where packets leave the rules",
            ),
            "connections": listed(
                body(
                    caption=text("the connection, and where it ends"),
                    tried=texts("keys of rows that did not match"),
                    hit=texts("keys of rows that matched"),
                    links=texts("keys of rows whose target was taken"),
                    reached=texts("keys of chains and ends that it came to"),
                ),
                "those of the packet that is asked about",
            ),
            "notes": texts("remarks about the packet"),
        },
    ),
    "explain": (
        "explain",
        "One packet's path through the rules.",
        {**EXPLAIN, "warnings": texts("what the verdict depends on that the kernel does not tell")},
    ),
    "explain-envoy": (
        "explain --envoy",
        "One connection's path through the rules and through Envoy.",
        {
            "answers": listed(
                body(
                    clients=texts("the kinds of clients that this is the answer for"),
                    paths=listed(ref("path"), "one for each kind of endpoint"),
                ),
                "one for all clients that are treated alike",
            )
        },
    ),
    "inject": (
        "inject",
        "What was done to the manifests.",
        {
            "changed": flag("whether any file changes"),
            "files": listed(
                body(
                    file=text("its name"),
                    changed=flag("whether it changes"),
                    workloads=whole("how many workloads are in it"),
                    notes=listed(body(workload=text("which one"), note=text("what to know of it")), "by workload"),
                    text=maybe("the manifest, where it is not written to a file"),
                ),
                "every file",
            ),
        },
    ),
    "diagnose": (
        "diagnose",
        "What is wrong with a pod's capture.",
        {
            "code": one_of("the exit code", [0, 3, 4]) | {"type": "integer"},  # type: ignore[list-item]
            "healthy": flag("whether nothing is wrong; null where that is not known") | {"type": ["boolean", "null"]},
            "options": maybe("where the options come from that the rules are compared with"),
            "backends": texts("the backends whose tables have Istio rules"),
            "causes": listed(
                body(
                    name=text("the cause's name, which does not change"),
                    verdict=text("what is wrong"),
                    cause=text("why"),
                    evidence=texts("what shows it"),
                    remedy=texts("what to do"),
                    packet={"type": ["object", "null"], "description": "a packet that shows it, as explain prints it"},
                ),
                "the causes, the one that explains most first",
            ),
            "call": {"type": ["object", "null"], "description": "the call that was asked about, as explain prints it"},
            "sidecar": {
                "type": ["array", "null"],
                "description": "what the sidecar does with the request, as explain --envoy prints it, or null",
            },
            "remarks": texts("what else is to be known of the call, such as where a name's address is from"),
            "unknown": maybe("why nothing can be known"),
        },
    ),
    "options": (
        "options",
        "The command line of the options, or of the rules that exist.",
        {
            "command": listed({"type": "string"}, "the words of the command; null where there are no Istio rules")
            | {"type": ["array", "null"]},
            "exact": flag("whether the command makes the rules and the routing that exist, no more and no less"),
            "backend": maybe("the tables that were read, or dump; null where no rules were read"),
            "differences": listed(
                body(
                    family=one_of("the address family", FAMILY),
                    kind=one_of("what it is", ["missing", "unexpected", "misplaced"]),
                    table=text("the table"),
                    chain=maybe("the chain, where it is not about the whole table"),
                    number=maybe_whole("the rule's number, from 1"),
                    rule=maybe("the rule as iptables-save prints it"),
                ),
                "how the rules differ from those of the command",
            ),
            "missing_routing": texts("the ip(8) commands that would add what the rules need and the namespace lacks"),
        },
    ),
    "plan": (
        "plan",
        "How the rules differ from the plan, and what a run would do.",
        {
            "state": one_of("how the namespace compares with the plan", STATE),
            "backend": text("the backend that a run would write to"),
            "why": text("why that one"),
            "findings": texts("how the rules differ from the plan"),
            "diff": listed(
                body(
                    backend=maybe("the backend; null for routing"),
                    family=maybe("whose rules; null for native nftables, which has both"),
                    table=text("the table"),
                    chain=maybe("the chain"),
                    lines=texts("each begins with +, - or a space, as in a unified diff"),
                ),
                "chain by chain",
            ),
            "apply": body(
                does=text("what a run would do: nothing, write ..., or refuse"),
                why=text("why"),
                steps=listed(
                    body(
                        backend=text("the backend"),
                        add=texts("ip(8) commands that add routing"),
                        tables=listed(
                            body(family=text("whose"), table=text("its name"), rules=whole("how many it writes")),
                            "tables that are written",
                        ),
                        remove=texts("ip(8) commands that remove routing"),
                    ),
                    "backend by backend",
                ),
            ),
        },
    ),
    "plan-ebpf": (
        "plan --capture-backend ebpf",
        "Whether the capture by eBPF is in place, and what a run would do.",
        {
            "state": one_of("how the node compares with the plan", STATE),
            "backend": one_of("the backend", ["ebpf"]),
            "findings": FINDINGS["findings"],
            "capture": CAPTURE,
            "apply": body(does=one_of("what a run would do", ["nothing", "write"])),
        },
    ),
    "prove": (
        "prove",
        "Whether the options keep their promises for every packet.",
        {
            "holds": flag("whether nothing is broken but known faults of Istio's"),
            "warnings": texts("what of the namespace keeps the rules from working"),
            "claims": texts("every promise that was checked"),
            "flows": whole("how many classes of packets there are"),
            "faults": listed(
                body(
                    claim=text("the promise"),
                    family=one_of("whose packet", FAMILY),
                    expected=text("what should happen"),
                    found=text("what happens"),
                    known=maybe("where it is a known fault of Istio's rules"),
                    explain=ref("explain"),
                ),
                "each broken promise with a packet",
            ),
            "idle": listed(
                body(
                    family=one_of("whose", FAMILY),
                    table=text("its table"),
                    chain=text("its chain"),
                    number=maybe_whole("the rule's number; null for the chain"),
                    rule=maybe("the rule"),
                    why=text("why it decides nothing"),
                    purpose=maybe_ref("purpose"),
                ),
                "rules that decide nothing",
            ),
            "envoy": described(
                body(
                    fits=flag("whether rules and proxy fit"),
                    claims=listed(body(name=text("P1 to P12"), text=text("the claim")), "every claim"),
                    misfits=listed(
                        body(
                            claim=text("P1 to P12"),
                            text=text("the claim"),
                            family=one_of("whose packet", FAMILY),
                            found=text("what is wrong"),
                            path=maybe("its place in the dump"),
                            client=maybe("the kind of client"),
                            explain=maybe_ref("path"),
                        ),
                        "each broken claim with a connection",
                    ),
                    notes=listed(
                        body(name=text("n1 to n4"), text=text("the note"), path=maybe("its place in the dump")),
                        "what is worth knowing",
                    ),
                    connections=whole("how many connections were followed"),
                ),
                "only with --envoy",
            ),
        },
    ),
    "run": (
        "apply, clean",
        "What a run did.",
        {
            "verb": one_of("the verb", ["apply", "clean"]),
            "code": whole("the exit code"),
            "summary": text("the last line of the log: what was done, or the error"),
            "log": LOG,
            "rules": maybe("with --dry-run: the rules as iptables-save or nft prints them"),
        },
    ),
    "show": (
        "show",
        "The rules with their counters; with --watch, one such object a line.",
        {
            "state": one_of("how the namespace compares with the plan", STATE),
            "backend": text("the backend that a run would write to"),
            "why": text("why that one"),
            **FINDINGS,
            "tables": listed(
                body(
                    backend=text("the backend"),
                    family=text("ipv4, ipv6, or inet for native nftables"),
                    table=text("the table"),
                    chains=listed(
                        body(
                            chain=text("its name"),
                            policy=maybe("of a built-in chain"),
                            packets=maybe_whole("that the policy decided"),
                            bytes=maybe_whole("that the policy decided"),
                            rules=listed(
                                body(
                                    number=whole("from 1"),
                                    packets=maybe_whole("null where it has no counter"),
                                    bytes=maybe_whole("null where it has no counter"),
                                    target=text("as iptables -L has it"),
                                    protocol=text("as iptables -L has it"),
                                    in_interface=text("as iptables -L has it"),
                                    out_interface=text("as iptables -L has it"),
                                    source=text("as iptables -L has it"),
                                    destination=text("as iptables -L has it"),
                                    extra=text("as iptables -L has it"),
                                    rule=text("as iptables-save or nft has it"),
                                    state=one_of(
                                        "how it compares with the plan",
                                        ["in place", "unexpected", "misplaced", "other family", "foreign"],
                                    ),
                                    purposes=listed(ref("purpose"), "what it is for"),
                                ),
                                "in order",
                            ),
                            missing=texts("rules of the plan that it lacks"),
                        ),
                        "in order",
                    ),
                ),
                "every table that has rules",
            ),
            "routing": listed(
                body(
                    state=one_of(
                        "how it compares with the plan",
                        ["in place", "missing", "unexpected", "other family", "foreign"],
                    ),
                    entry=text("the ip(8) command that adds it"),
                ),
                "policy routing",
            ),
            "conntrack": {
                "anyOf": [
                    body(
                        entries=whole("tracked connections"),
                        limit=of_kind(["integer", "null"], "how many there may be"),
                        captured=of_kind(
                            ["object", "null"],
                            "captured connections by kind; null where the kernel does not list them",
                            additionalProperties={"type": "integer", "minimum": 0},
                        ),
                    ),
                    {"type": "null"},
                ],
                "description": "null where no connection is tracked",
            },
        },
    ),
    "show-ebpf": (
        "show --capture-backend ebpf",
        "The capture by eBPF with the node's counters.",
        {
            "state": one_of("how the node compares with the plan", STATE),
            "backend": one_of("the backend", ["ebpf"]),
            "findings": FINDINGS["findings"],
            "capture": CAPTURE,
            "counters": of_kind(
                "object", "since the programs were installed", additionalProperties={"type": "integer", "minimum": 0}
            ),
        },
    ),
}
# Fields that an answer has only with some flags.
OPTIONAL = {"prove": {"envoy"}, "explain": {"warnings"}}
