"""What explain says: every rule has its purpose, every kind of match and target its words, the command its output."""

from __future__ import annotations

import json
import pathlib
import shlex
from typing import TYPE_CHECKING

import pytest

from istio_init.cli.app import main
from istio_init.cli.verbs.packet_flags import endpoint
from istio_init.errors import KernelError
from istio_init.errors_rare import OptionError
from istio_init.kernel.host.containers import namespace_path, pid_of
from istio_init.model.extensions import (
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.packet import Facts, Packet
from istio_init.model.rules import (
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import fate, lines
from istio_init.simulate.report_json import as_json
from istio_init.simulate.semantics import holds
from istio_init.simulate.trace_steps import RuleStep
from istio_init.simulate.wording import effect, why_not
from tests.kit.options import options
from tests.kit.packets import ARTICLE, CLIENT, POD, SERVER, Sidecar, packed
from tests.planning.cases import CASES, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Match, Target


def report(sidecar: Sidecar, packet: Packet, *, steps: bool = False) -> list[str]:
    reasons = purposes(sidecar.options, packet.family)
    return [line.text for line in lines(sidecar.path(packet), reasons, steps=steps)]


@pytest.mark.parametrize("name", CASES)
def test_every_rule_of_every_case_has_a_purpose(name: str) -> None:
    sidecar = Sidecar(shlex.join(argv(name)))
    for ruleset in sidecar.plan.rulesets:
        reasons = purposes(sidecar.options, ruleset.family)
        for table in ruleset.tables:
            for chain in table.chains:
                for rule in chain.rules:
                    assert reasons[table.name, chain.name, rule].text


def test_the_nine_rules_are_numbered_as_in_the_article() -> None:
    sidecar = Sidecar(f"{ARTICLE} --compat-version 1.13")
    reasons = purposes(sidecar.options, "ipv4")
    nat = sidecar.plan.rulesets[0].table("nat")
    chain = nat.chain("ISTIO_OUTPUT") if nat else None
    assert chain
    actual = [reasons["nat", "ISTIO_OUTPUT", rule] for rule in chain.rules]
    assert [why.number for why in actual] == list("123456789")
    assert [why.steps for why in actual] == [
        "6 to 7", "16", "6 to 7", "14 to 15", "16", "6 to 7", "14 to 15", "", "10 to 11",
    ]  # fmt: skip


def test_flags_are_those_of_the_command() -> None:
    for name in CASES:
        sidecar = Sidecar(shlex.join(argv(name)))
        for why in purposes(sidecar.options, "ipv4").values():
            for flag in why.flags:
                value = [] if flag in {"--redirect-dns", "--drop-invalid"} else ["1.13" if "compat" in flag else ""]
                arguments = options([flag, *value], {}) or options([flag, "1"], {}) or options([flag, "127.0.0.1"], {})
                assert arguments is not None, flag


def test_the_fate_names_the_rule_and_its_reason() -> None:
    sidecar = Sidecar(ARTICLE)
    reasons = purposes(sidecar.options, "ipv4")
    leg = sidecar.leg(sidecar.outbound(SERVER, 443))
    assert fate(leg, reasons) == (
        "goes to Envoy's outbound listener, 127.0.0.1:15001, because ISTIO_OUTPUT rule 9: all other outbound "
        "traffic goes to Envoy's outbound listener"
    )
    every = report(sidecar, sidecar.outbound(SERVER, 443), steps=True)
    text = "\n".join(every)
    assert "(its uid is 1000, not 1337)" in text
    assert "destination becomes 127.0.0.1:15001" in text
    assert "rule 9 of the nine; the article's steps 10 to 11; from -i" in text
    assert "2. From Envoy, to the original destination" in text
    assert every[-3].startswith("=> leaves the pod by eth0 to 10.1.2.3:443, because ISTIO_OUTPUT rule 4")


def test_the_articles_numbers_are_shown_where_they_are_asked_for() -> None:
    sidecar = Sidecar(ARTICLE)
    text = "\n".join(report(sidecar, sidecar.outbound(SERVER, 443)))
    assert "article" not in text
    assert "of the nine" not in text
    assert "[from -i; set by traffic.sidecar.istio.io/includeOutboundIPRanges]" in text


@pytest.mark.parametrize(
    ("question", "word", "text"),
    [
        (
            "--outbound --to 10.1.2.3:443",
            "captured",
            "; what the proxy then sends leaves the pod by eth0 to 10.1.2.3:443.",
        ),
        ("--outbound --to 10.1.2.3:443 --uid 1337", "not captured", "leaves the pod by eth0 to 10.1.2.3:443, because"),
        ("--inbound --to :15090 -d 15090", "not captured", "reaches the pod directly, without the proxy, at"),
        ("--inbound --to :15008", "addressed to the proxy", "tunnel listener"),
        ("--inbound --to :80 --state invalid --drop-invalid", "dropped", "because PREROUTING rule 1 of mangle: "),
        ("--inbound --to :80 -m TPROXY --proxy-runs-as 1337", "loop", "again, without end."),
    ],
)
def test_the_verdict_comes_first_and_last(
    capsys: pytest.CaptureFixture[str], question: str, word: str, text: str
) -> None:
    command = f"explain {question} -u 1337 -i * -b *"
    _, shown, _ = run(capsys, command)
    first, *_, last = shown.splitlines()
    assert first == last
    assert first.startswith((f"Verdict: {word}: ", f"Verdict: {word}, "))
    assert text in first
    assert json.loads(run(capsys, f"{command} --output json")[1])["verdict"] == word


def test_a_loop_is_said() -> None:
    sidecar = Sidecar(f"{ARTICLE} -m TPROXY", runs_as=(1337, 1337))
    assert report(sidecar, sidecar.inbound(9080))[-3].startswith("LOOP: the packet goes to Envoy's inbound listener")
    reasons = purposes(sidecar.options, "ipv4")
    assert as_json(sidecar.path(sidecar.inbound(9080)), reasons)["loop"] == "inbound"


def test_a_martian_is_said() -> None:
    sidecar = Sidecar(ARTICLE)
    packet = sidecar.inbound(80, source=POD)
    text = report(sidecar, packet)
    assert text[-4].strip() == "the kernel drops it, whatever the rules are"
    assert text[-3].strip().startswith(f"=> is dropped, because its source, {POD}, is this machine's own (a martian")
    direction = as_json(sidecar.path(packet), purposes(sidecar.options, "ipv4"))["legs"][0]["way"]
    assert direction[-1]["refused"].startswith("its source")


def test_long_lists_are_cut_in_text_and_whole_in_json() -> None:
    sidecar = Sidecar(f"{ARTICLE} -o {','.join(map(str, range(1, 101)))}")
    packet = sidecar.outbound(SERVER, 4430)
    assert "... and further rules that don't match" in "\n".join(report(sidecar, packet))
    first = as_json(sidecar.path(packet), purposes(sidecar.options, "ipv4"))["legs"][0]["way"][0]
    assert len(first["steps"]) > 200


NETWORK = Network(bytes([10, 0, 0, 0]), 8)
PORTS = PortRange(1, 2)
PACKET = Packet(
    "OUTPUT", 6, packed("192.0.2.1"), packed("10.0.0.1"), 40000, 443, out_interface="eth0", uid=5, gid=6, mark=7
)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (Source(NETWORK), "it comes from 192.0.2.1, not 10.0.0.0/8"),
        (Destination(NETWORK, negated=True), "it goes to 10.0.0.1, which is in 10.0.0.0/8"),
        (InInterface("lo"), "it comes in by no interface, not lo"),
        (OutInterface("eth0", negated=True), "it leaves by eth0"),
        (Protocol(17), "it is tcp, not udp"),
        (SourcePorts(PORTS), "its source port is 40000, not 1-2"),
        (DestinationPorts(PORTS), "its port is 443, not 1-2"),
        (Multiport("ports", (PORTS, PortRange(9, 9))), "its port is 40000 and 443, not 1-2 or 9"),
        (Owner("uid", 1, 4), "its uid is 5, not 1-4"),
        (Owner("gid", 6, 6, negated=True), "its gid is 6"),
        (Mark(1), "its mark is 0x7, not 0x1"),
        (ConnMark(1), "its connection's mark is 0x0, not 0x1"),
        (CtState(("INVALID",)), "its connection is NEW, not INVALID"),
        (UnknownMatch("bpf", 1, b""), "-m bpf is not known to this program"),
    ],
)
def test_every_match_says_why_it_failed(match: Match, words: str) -> None:
    assert not holds(match, PACKET, Facts(()))
    assert why_not(match, PACKET) == words


def test_a_comment_needs_no_words_and_no_socket_has_some() -> None:
    assert holds(Comment("x"), PACKET, Facts(()))
    assert why_not(Comment("x"), PACKET) == ""
    assert why_not(Owner("uid", 1, 1), PACKET.replace(uid=None)) == "no socket sent it"


@pytest.mark.parametrize(
    ("target", "after", "words"),
    [
        (Verdict("RETURN"), {}, "leaves this chain"),
        (Verdict("DROP"), {}, "is dropped"),
        (Verdict("QUEUE"), {}, "is handed to a program"),
        (Verdict(""), {}, "is counted"),
        (Jump("A"), {}, "goes to chain A"),
        (Jump("A", goto=True), {}, "goes to chain A (goto)"),
        (Redirect(PORTS), {"destination": packed(POD), "destination_port": 9, "redirected": True},
         "destination becomes 10.0.0.5:9"),
        (Redirect(PORTS), {}, "is dropped:  has no address to redirect to"),
        (Tproxy(9, bytes(4), 1), {"tproxy_port": 9, "mark": 1}, "goes to the transparent socket on port 9, mark 0x1"),
        (SetMark(1), {"mark": 1}, "mark becomes 0x1"),
        (RestoreMark(), {}, "mark stays 0x7"),
        (SaveMark(), {"connmark": 7}, "the connection's mark becomes 0x7"),
        (CtZone(2), {"zone": 2}, "conntrack zone 2"),
        (UnknownTarget("LOG", 0, b""), {}, "is logged"),
    ],
)  # fmt: skip
def test_every_target_says_what_it_did(target: Target, after: dict[str, object], words: str) -> None:
    rule = Rule((), target)
    assert effect(RuleStep("nat", "OUTPUT", 1, rule, True, PACKET, PACKET.replace(**after))) == words


def test_what_a_target_could_not_do_is_said() -> None:
    unknown = Rule((), UnknownTarget("DNAT", 0, b""))
    assert effect(RuleStep("nat", "OUTPUT", 1, unknown, None, PACKET, PACKET)).endswith("is not known to this program")
    zone = Rule((), CtZone(2))
    chosen, tracked = PACKET.replace(zone=1), PACKET.replace(zone=0, tracked=True)
    assert effect(RuleStep("raw", "OUTPUT", 1, zone, True, chosen, chosen)) == "its conntrack zone stays 1"
    assert (
        effect(RuleStep("raw", "OUTPUT", 1, zone, True, tracked, tracked)) == "connection tracking has seen it already"
    )


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("10.0.0.1:80", "10.0.0.1", 80), (":80", None, 80), ("10.0.0.1", "10.0.0.1", None), ("fd00::1", "fd00::1", None),
     ("[fd00::1]:80", "fd00::1", 80), ("[fd00::1]", "fd00::1", None), ("", None, None)],
)  # fmt: skip
def test_an_endpoint_is_an_address_or_a_port_or_both(text: str, address: str, port: int | None) -> None:
    actual = endpoint("--to", text)
    assert (actual.address, actual.port) == (packed(address) if address else None, port)


@pytest.mark.parametrize(
    "text", ["10.0.0.1:x", "10.0.0:80", "[fd00::1", "[fd00::1]80", "[10.0.0.1]:80", "a:b:c", ":65536"]
)
def test_what_is_no_endpoint_is_an_error(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--to: "):
        endpoint("--to", text)


QUIET = {"ENVOY_USER": "0"}


def run(capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, str, str]:
    code = main(command.split(), QUIET)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_tells_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    question = f"explain --inbound --from {CLIENT} --to :9080 -u 1337 -i * -b *"
    code, text, _ = run(capsys, question)
    assert code == 0
    assert "goes to Envoy's inbound listener, 192.0.2.10:15006, because ISTIO_INBOUND rule 2" in text
    assert "\x1b" not in text
    _, data, _ = run(capsys, f"{question} --output json")
    document = json.loads(data)
    assert [leg["end"] for leg in document["legs"]] == ["inbound", "application"]
    matched = [step for step in document["legs"][0]["way"][0]["steps"] if step.get("matched")]
    assert matched[0]["purpose"]["flags"] == ["-b", "-m"]
    assert document["loop"] is None


@pytest.mark.parametrize(
    ("question", "end"),
    [
        ("--outbound --uid 1000 --to 10.1.2.3:443", "outbound wire"),
        ("--outbound --uid 1337 --to 10.1.2.3:443", "wire"),
        ("--outbound --to [2001:db8:5::1]:443", "outbound wire"),
        ("--outbound --to 10.0.0.10:53 --protocol udp --redirect-dns --dns-servers 10.0.0.10", "dns wire"),
        ("--outbound --to 10.9.9.9:80 --interface lo --uid 1337", "inbound application"),
        ("--outbound --to 10.9.9.9:80 --pod-address 10.9.9.9 --uid 1337", "inbound application"),
        ("--outbound --to 10.9.9.9:80 --state established --reply", "wire"),
        ("--outbound --to 10.9.9.9:80 --uid -", "outbound wire"),
        ("--inbound --to :80 --mark 0x539 -m TPROXY", "application"),
        ("--inbound --to 10.9.9.9:80 -m TPROXY --proxy-runs-as 1337", "inbound inbound"),
        ("--inbound --to 10.1.2.3:443 --interface net1 -k net1", "outbound wire"),
        ("--inbound --interface eth1 --to :80 -c eth1", "application"),
        ("--inbound --protocol icmp", "application"),
    ],
)
def test_questions(capsys: pytest.CaptureFixture[str], question: str, end: str) -> None:
    code, data, err = run(capsys, f"explain {question} -u 1337 -i * -b * --output json")
    assert code == 0, err
    assert " ".join(leg["end"] for leg in json.loads(data)["legs"]) == end


@pytest.mark.parametrize(
    ("question", "ends", "direction"),
    [
        ("--uid 1337 --to 127.0.0.6:80", "127.0.0.1 127.0.0.6", "inbound application"),
        ("--uid 1337 --to 127.0.0.6:80 --from 127.0.0.6", "127.0.0.6 127.0.0.6", "application"),
        ("--uid 1337 --to 127.0.0.1:80", "127.0.0.1 127.0.0.1", "application"),
        ("--to 0.0.0.0:80", "127.0.0.1 127.0.0.1", "application"),
        ("--to 0.0.0.0:80 --interface lo", "127.0.0.1 127.0.0.1", "application"),
        ("--to 0.0.0.0:80 --from 192.0.2.10", "192.0.2.10 192.0.2.10", "application"),
        ("--to 0.0.0.0:80 --from 0.0.0.0", "0.0.0.0 127.0.0.1", "application"),
        ("--to [::]:80", "::1 ::1", "application"),
        ("--to [::]:80 --from 2001:db8::a", "2001:db8::a ::1", "application"),
        ("--uid 1337 --to [::6]:80", "::6 ::6", "application"),
        ("--uid 1337 --to 192.0.2.11:80 --pod-address 192.0.2.10,192.0.2.11", "192.0.2.11 192.0.2.11",
         "inbound application"),
    ],
)  # fmt: skip
def test_ends_are_those_that_the_kernel_chooses(
    capsys: pytest.CaptureFixture[str], question: str, ends: str, direction: str
) -> None:
    code, data, err = run(capsys, f"explain --outbound {question} -u 1337 -i * -b * --output json")
    assert code == 0, err
    legs = json.loads(data)["legs"]
    assert f"{legs[0]['packet']['source']} {legs[0]['packet']['destination']}" == ends
    assert " ".join(leg["end"] for leg in legs) == direction


OWN_PORT = "Envoy closes a connection to its own port"


@pytest.mark.parametrize(
    ("question", "direction", "why"),
    [
        ("--inbound --to :15006", "inbound", OWN_PORT),
        ("--inbound --to :15006 -m TPROXY", "inbound", OWN_PORT),
        ("--inbound --to :15001", "inbound outbound", OWN_PORT),
        ("--outbound --to 1.2.3.4:15001", "outbound", OWN_PORT),
        ("--outbound --to 127.0.0.1:15006", "inbound", OWN_PORT),
        ("--inbound --to :15008", "tunnel", "the request inside the tunnel"),
        ("--outbound --to 127.0.0.1:15053 --protocol udp", "dns", "the agent answers"),
        ("--outbound --to 1.2.3.4:15006", "outbound wire", ""),
        ("--inbound --to :9080", "inbound application", ""),
    ],
)
def test_where_nothing_follows_from_the_proxy_it_is_said(
    capsys: pytest.CaptureFixture[str], question: str, direction: str, why: str
) -> None:
    question = f"explain {question} -u 1337 -i * -b *"
    _, data, _ = run(capsys, f"{question} --output json")
    answer = json.loads(data)
    assert " ".join(leg["end"] for leg in answer["legs"]) == direction
    assert why in (answer["stop"] or "")
    assert bool(answer["stop"]) is bool(why)
    _, text, _ = run(capsys, question)
    assert not why or text.splitlines()[-3] == answer["stop"]


@pytest.mark.parametrize(
    ("question", "flag"),
    [
        ("", "--outbound, --inbound"),
        ("--outbound --inbound", "--outbound, --inbound"),
        ("--outbound --to 1.2.3.4 --from ::1", "--from, --to"),
        ("--outbound --protocol tpc", "--protocol"),
        ("--outbound --state OLD", "--state"),
        ("--outbound --to 443", "--to"),
        ("--outbound --to example.com:443", "--to"),
        ("--outbound --interface eth+", "--interface"),
        ("--inbound --interface a/b", "--interface"),
        ("--outbound --mark 0x1_0", "--mark"),
        ("--outbound --reply", "--reply"),
        ("--outbound --uid nobody-of-this-name", "--uid"),
        ("--outbound --mark 0x1ffffffff", "--mark"),
        ("--outbound --output yaml", "--output"),
        ("--outbound --pod-address here", "--pod-address"),
        ("--outbound --live --pid 1 --netns /x", "--pid, --container, --network-namespace"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line(
    capsys: pytest.CaptureFixture[str], question: str, flag: str
) -> None:
    code, out, err = run(capsys, f"explain {question}")
    assert (code, out) == (255, "")
    assert err.startswith(f"istio-init: {flag}")
    assert err.count("\n") == 1


def container(tmp_path: pathlib.Path, pid: int, text: str) -> None:
    (tmp_path / str(pid)).mkdir()
    (tmp_path / str(pid) / "cgroup").write_text(text)


def test_a_container_is_found_by_its_control_group(tmp_path: pathlib.Path) -> None:
    one, other = "a1" * 32, "a1" * 31 + "b2"
    container(tmp_path, 70, f"0::/system.slice/docker-{one}.scope\n")
    container(tmp_path, 7, f"12:cpu:/kubepods/pod1/{other}\n0::/init.scope\n")
    container(tmp_path, 30, f"0::/kubepods.slice/cri-containerd-{one}.scope\n")
    container(tmp_path, 1, "0::/init.scope\n")
    (tmp_path / "99").mkdir()
    (tmp_path / "self").mkdir()
    assert pid_of(one, str(tmp_path)) == 30
    assert pid_of(f"containerd://{other}", str(tmp_path)) == 7
    for wrong, why in (
        (one[:12], "2 containers' ids begin so"),
        ("c3" * 8, "no process here"),
        ("x", "not a container's id"),
    ):
        with pytest.raises(KernelError, match=why):
            pid_of(wrong, str(tmp_path))


def test_a_process_that_there_is_not_is_said() -> None:
    with pytest.raises(KernelError, match="process 4194305: there is none"):
        namespace_path(4194305)


def test_the_docs_show_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    block = next(part for part in text.split("```") if part.startswith("\n$ istio-init "))
    command, _, shown = block.strip("\n").partition("\n")
    assert main(shlex.split(command)[2:], QUIET) == 0
    assert capsys.readouterr().out.rstrip("\n") == shown
