"""Random virtual hosts, routes and requests: what the walk says of them, and what a real Envoy does with them."""

from __future__ import annotations

import random

from integration.containers.envoy_config import TYPES, Json
from istio_init.envoy.client import HttpCall

DOMAINS = [
    "a.example.com", "b.a.example.com", "*.example.com", "*.a.example.com", "*-x.example.com", "a.*", "a.example.*",
    "*.com", "A.Example.ORG", "10.1.2.3", "a.example.com:8080", "[2001:db8::1]", "[2001:db8::1]:80", "b", "b.*", "*",
]  # fmt: skip
HOSTS = [
    "a.example.com", "A.EXAMPLE.com", "a.example.com:8080", "a.example.com:80", "b.a.example.com", "c.b.a.example.com",
    ".example.com", "q-x.example.com", "-x.example.com", "a.b", "a.", "a.example.org", "10.1.2.3", "10.1.2.3:9080",
    "[2001:db8::1]", "[2001:db8::1]:80", "b", "b:1", "unknown", "x.com", "a.example.com:",
]  # fmt: skip
PREFIXES = ["/", "/a", "/a/", "/api", "/api/v1", "/A", ""]
PATHS = ["/", "/a", "/a/b", "/api/v1", "/A"]
SEPARATED = ["/a", "/api", "/api/v1"]
REGEXES = ["/a.*", "/api/v[0-9]+", "/[a-z]*", "/api/v\\d/x?", "/(a|b)/.*", "/a\\.b", "/.{3}"]
REQUEST_PATHS = [
    "/", "/a", "/a/", "/a/b", "/ab", "/api", "/apis", "/api/v1", "/api/v1/x", "/api/v12", "/A", "/A/b", "/a?x=1",
    "/api?x=1&y=2", "/a/../api", "/a/./b", "/%61", "/a%2Fb", "//a", "/a.b", "/abc", "/b/c", "/a?y=&x=2", "/a?z",
]  # fmt: skip
HEADERS = ["end-user", "x-version", "x-empty", ":method", ":path", ":authority"]
VALUES = ["jason", "Jason", "jason2", "1", "17", "-3", "", "x17", "abc"]


def random_configuration(chance: random.Random) -> tuple[Json, Json]:
    """A route configuration whose routes answer with their host's and their own number; the manager's settings."""
    hosts, left = [], chance.sample(DOMAINS, len(DOMAINS))
    for number in range(chance.randint(1, 6)):
        domains = [left.pop() for _ in range(chance.randint(1, 3)) if left]
        if domains:
            hosts.append(_host(chance, number, domains))
    configuration: Json = {"name": "random", "virtual_hosts": hosts}
    # Without their ports some domains would be the same.
    if chance.random() < 0.5:
        configuration["ignore_port_in_host_matching"] = True
    manager = {
        field: True
        for field in ("normalize_path", "merge_slashes", "strip_any_host_port", "strip_matching_host_port")
        if chance.random() < 0.25
    }
    if {"strip_any_host_port", "strip_matching_host_port"} <= manager.keys():
        del manager["strip_any_host_port"]
    return configuration, manager


def _host(chance: random.Random, number: int, domains: list[str]) -> Json:
    routes = [_route(chance, f"host-{number}/route-{route}") for route in range(1, chance.randint(2, 7))]
    return {"name": f"host-{number}", "domains": domains, "routes": routes}


def _route(chance: random.Random, name: str) -> Json:
    match: Json = {}
    kind = chance.choice(["prefix", "prefix", "path", "path_separated_prefix", "safe_regex"])
    if kind == "safe_regex":
        match["safe_regex"] = {"regex": chance.choice(REGEXES)}
    else:
        match[kind] = chance.choice({"prefix": PREFIXES, "path": PATHS, "path_separated_prefix": SEPARATED}[kind])
        if chance.random() < 0.3:
            match["case_sensitive"] = False
    if chance.random() < 0.5:
        match["headers"] = [_header(chance) for _ in range(chance.randint(1, 2))]
    if chance.random() < 0.25:
        match["query_parameters"] = [_parameter(chance)]
    answer = {"status": 200, "body": {"inline_string": name}}
    return {"name": name, "match": match, "direct_response": answer}


def _string(chance: random.Random, values: list[str]) -> Json:
    kind = chance.choice(["exact", "prefix", "suffix", "contains", "safe_regex"])
    if kind == "safe_regex":
        return {"safe_regex": {"regex": chance.choice(["jason.?", "[0-9]+", ".*", "[jJ]ason", "x?1\\d*"])}}
    value = chance.choice([each for each in values if each])
    return {kind: value, **({"ignore_case": True} if chance.random() < 0.3 else {})}


def _header(chance: random.Random) -> Json:
    header: Json = {"name": chance.choice(HEADERS)}
    kind = chance.choice(["string", "string", "range", "present", "absent", "nothing"])
    if kind == "string":
        header["string_match"] = _string(chance, [*VALUES, "GET", "/a", "a.example.com"])
    elif kind == "range":
        header["range_match"] = {"start": chance.choice([-5, 0, 10]), "end": chance.choice([11, 18])}
    elif kind in {"present", "absent"}:
        header["present_match"] = kind == "present"
    if chance.random() < 0.3:
        header["invert_match"] = True
    if chance.random() < 0.2:
        header["treat_missing_header_as_empty"] = True
    return header


def _parameter(chance: random.Random) -> Json:
    parameter: Json = {"name": chance.choice(["x", "y", "z"])}
    kind = chance.choice(["string", "present", "nothing"])
    if kind == "string":
        parameter["string_match"] = _string(chance, ["1", "2"])
    elif kind == "present":
        parameter["present_match"] = True
    return parameter


def random_request(chance: random.Random) -> HttpCall:
    """A request."""
    headers = [(name, chance.choice(VALUES)) for name in HEADERS[:3] if chance.random() < 0.5]
    if chance.random() < 0.1 and headers:
        headers.append((headers[0][0], chance.choice(VALUES)))
    return HttpCall(
        chance.choice(HOSTS), chance.choice(REQUEST_PATHS), chance.choice(["GET", "GET", "POST"]), tuple(headers)
    )


def listener(configuration: Json, manager: Json, port: int) -> Json:
    """A listener that serves a route configuration."""
    router = {"@type": f"{TYPES}.filters.http.router.v3.Router"}
    config = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": configuration,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        **manager,
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": config}]
    return {
        "name": f"listener-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": filters}],
    }
