"""Random valid command lines: every option that shapes a plan, with the values that are at the edges more often."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from istio_init.model.parsers import OUTBOUND_MARK
from istio_init.model.rules import IPV4
from istio_init.options.table import OPTIONS, RUNNING

numbers = st.sampled_from([1, 2, 53, 80, 15001, 15006, 15008, 15053, 65534, 65535]) | st.integers(1, 65535)
ranges = st.tuples(numbers, numbers, st.sampled_from(":-")).map(lambda r: f"{min(r[:2])}{r[2]}{max(r[:2])}")
ids = (st.sampled_from([0, 1, 1337, 2**31 - 1, 2**31, 2**32 - 2]) | st.integers(0, 2**32 - 2)).map(str)
addresses = {
    "ipv4": st.ip_addresses(v=4).map(str) | st.sampled_from(["0.0.0.0", "127.0.0.1", "127.0.0.6", "255.255.255.255"]),
    "ipv6": st.ip_addresses(v=6).map(str) | st.sampled_from(["::", "::1", "::6", "::ffff:1.2.3.4", "::1.2.3.4"]),
}
networks = st.sampled_from(["ipv4", "ipv6"]).flatmap(
    lambda family: st.one_of(
        addresses[family],
        st.builds("{}/{}".format, addresses[family], st.integers(0, 32 if family == IPV4 else 128)),
    )
)
names = st.text(string.ascii_letters + string.digits + "._-@#%^=~()[]{}<>|;&?*$!'`\\+", min_size=1, max_size=14).filter(
    lambda name: name not in {".", "..", "!", "+", "*"} and not name.startswith("-")
)
interfaces = (
    names | names.map(lambda name: f"{name}+") | st.sampled_from(["lo", "eth0", "veth+", "++", "a", "exactly15bytes."])
)
marks = st.sampled_from(["1", "1337", "0x539", "4294967295", "0x80000000"]) | st.integers(1, 2**32 - 1).filter(
    lambda mark: mark != OUTBOUND_MARK
).map(str)
tables = st.sampled_from(["1", "133", "252", "256", "4294967295"]) | st.integers(256, 2**32 - 1).map(str)


def listed(entries: st.SearchStrategy[str], most: int = 5) -> st.SearchStrategy[str]:
    """A comma list, as untidy as a user's may be."""
    return st.tuples(st.lists(entries, max_size=most), st.sampled_from([",", ",,", " , "])).map(
        lambda pair: pair[1].join(pair[0])
    )


def option(flag: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """The flag with a value, or nothing."""
    return st.just([]) | values.map(lambda value: [flag, value])


def switch(flag: str) -> st.SearchStrategy[list[str]]:
    """The flag, or nothing."""
    return st.sampled_from([[], [flag]])


id_ranges = st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2)).map(lambda pair: f"{min(pair)}-{max(pair)}")
port_lists = st.lists(numbers.map(str) | ranges.filter(lambda text: ":" not in text), min_size=1, max_size=3)
users_ports = st.lists(
    st.builds(
        "{}:{}:{}".format,
        st.sampled_from(["tcp", "udp"]),
        st.just("*") | port_lists.map(",".join),
        st.lists(ids | id_ranges, min_size=1, max_size=3).map(",".join),
    ),
    max_size=3,
).map(";".join)


command_lines: st.SearchStrategy[list[str]] = st.tuples(
    st.just(["-u", "1337", "--dns-servers", ""]),
    option("-p", numbers.map(str)),
    option("-z", numbers.map(str)),
    option("-e", numbers.map(str)),
    option("-u", listed(ids, 3).filter(bool)),
    option("-g", listed(ids, 3)),
    option("-m", st.sampled_from(["REDIRECT", "TPROXY"])),
    option("-b", st.just("*") | listed(numbers.map(str) | ranges)),
    option("-d", listed(numbers.map(str) | ranges)),
    option("-i", st.just("*") | listed(networks)),
    option("-x", listed(networks)),
    option("-q", listed(numbers.map(str) | ranges)),
    option("-o", listed(numbers.map(str) | ranges)),
    option("-c", listed(interfaces)),
    option("-k", listed(interfaces)),
    option("-t", marks),
    option("-r", tables),
    option("--istio-outbound-owner-groups", st.just("*") | listed(ids)),
    option("--istio-outbound-owner-groups-exclude", listed(ids)),
    option("--istio-inbound-exclude-cidr", listed(networks)),
    option("--exclude-uids-for-ports", users_ports),
    option("--dns-servers", listed(addresses["ipv4"] | addresses["ipv6"], 3)),
    option("--istio-outbound-ipv4-loopback-cidr", st.sampled_from(["127.0.0.0/8", "127.1.2.3", "127.0.0.1/9"])),
    option("--compat-version", st.just("1.13")),
    switch("--redirect-dns"),
    switch("--capture-all-dns"),
    switch("--drop-invalid"),
    switch("--rule-comments"),
    st.sampled_from([["--enable-ipv6"], ["--no-enable-ipv6"]]),
).map(lambda parts: [word for part in parts for word in part])

texts = st.text(string.ascii_letters + string.digits + " ,:=$(){}'\"\\#&*!|>%@`~é\n", max_size=8).filter(
    lambda text: not text.startswith("-")
)
# What does not shape a plan, but how a run goes.
running: st.SearchStrategy[list[str]] = st.tuples(
    *(
        st.sampled_from([[], [f"--{each.flag}"], [f"--no-{each.flag}"]])
        for each in OPTIONS
        if each.switch and each.group == RUNNING and each.field not in {"drop_invalid", "rule_comments"}
    ),
    option("--iptables-probe-port", numbers.map(str)),
    option("--ip-family", st.sampled_from(["ipv4", "ipv6"])),
    option("--network-namespace", texts),
    option("--probe-timeout", st.sampled_from(["500ms", "1m30s", "0.1s", "7ns", "24h"])),
    option("--wait", st.sampled_from(["0", "0.001", "86400", "3.25"])),
    option("--force-iptables-binary", st.sampled_from(["legacy", "nft"])),
    option("--iptables-engine", st.just("python-iptables")),
    option("--capture-backend", st.just("ebpf")),
    option("--log_output_level", st.sampled_from(["none", "debug", "default:warn,ads:debug"])),
    option("--log_target", texts),
    option("--log_caller", texts),
    option("--log_stacktrace_level", texts),
    switch("--dual-stack"),
).map(lambda parts: [word for part in parts for word in part])
