"""Selects the virtual host and the route of a request.

Sources: Envoy's source/common/router/config_impl.cc (RouteMatcher::findVirtualHost, RouteEntryImplBase::matchRoute),
source/common/http/header_utility.cc.
"""

from __future__ import annotations

from istio_init.envoy.node import plain
from istio_init.envoy.paths import bare, normalized
from istio_init.envoy.strings import Unclear, string_matches
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.envoy.client import HttpCall
    from istio_init.envoy.node import Node


class VirtualHost(Record):
    """A virtual host and the domain that matched."""

    name: str
    domain: str
    node: Node


class HttpRoute(Record):
    """A route of a virtual host: `number` from 1."""

    number: int
    name: str
    node: Node


class Choice(Record):
    """The virtual host and the route of a request, None if none matches.

    `others` are the routes before it, each with the reason; `unclear` is why that can't be decided, or empty.
    """

    host: VirtualHost | None = None
    route: HttpRoute | None = None
    others: tuple[tuple[HttpRoute, str], ...] = ()
    unclear: str = ""


PATHS = ("prefix", "path", "safe_regex", "path_separated_prefix", "connect_matcher", "path_match_policy")
FOLLOWED = frozenset({"prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers",
    "query_parameters"})  # fmt: skip


def choose(configuration: Node, manager: Node, request: HttpCall, destination_port: int) -> Choice:
    """Route a request; `manager` is the connection manager of the route configuration."""
    request = received(manager, request, destination_port)
    try:
        return _choose(configuration, request)
    except Unclear as why:
        return Choice(unclear=str(why))


def received(manager: Node, request: HttpCall, destination_port: int) -> HttpCall:
    """The request after the connection manager: with a normalized path, and a Host without a port."""
    path = request.path
    if manager.get("normalize_path").flag():
        path = normalized(path)
    if manager.get("merge_slashes").flag():
        path = _merged(path)
    host, start = request.host, port_start(request.host)
    if start is not None and (port := host[start + 1 :]).isdecimal():
        strip_one = manager.get("strip_matching_host_port").flag() and int(port) == destination_port
        if strip_one or manager.get("strip_any_host_port").flag():
            host = host[:start]
    return request.replace(path=path, host=host)


def _merged(path: str) -> str:
    name, mark, query = path.partition("?")
    while "//" in name:
        name = name.replace("//", "/")
    return name + mark + query


def _choose(configuration: Node, request: HttpCall) -> Choice:
    if configuration.get("vhost_header"):
        raise Unclear(f"vhost_header at {configuration.path} is not followed")
    host = virtual_host(configuration, request.host)
    if host is None:
        return Choice()
    if host.node.get("matcher"):
        raise Unclear(f"virtual host {plain(host.name)} chooses its routes by a matcher, which is not followed")
    if host.node.get("require_tls").enum("NONE") != "NONE":
        raise Unclear(f"virtual host {plain(host.name)} has require_tls, which is not followed")
    others: list[tuple[HttpRoute, str]] = []
    for number, node in enumerate(host.node.get("routes").each(), 1):
        route = HttpRoute(number, node.get("name").text(), node)
        why = route_misses(node.get("match"), request)
        if why is None:
            return Choice(host, route, tuple(others))
        others.append((route, why))
    return Choice(host, None, tuple(others))


def virtual_host(configuration: Node, authority: str) -> VirtualHost | None:
    """The virtual host for a Host header: the exact domain, the longest *.x, the longest x.*, then *."""
    name = authority
    if configuration.get("ignore_port_in_host_matching").flag() and (start := port_start(name)) is not None:
        name = name[:start]
    name = name.lower()
    best: tuple[tuple[int, int], VirtualHost] | None = None
    for node in configuration.get("virtual_hosts").each():
        for domain in node.get("domains").texts():
            rank = _rank(domain.lower(), name)
            if rank and (best is None or rank > best[0]):
                best = rank, VirtualHost(node.get("name").text(), domain, node)
    return best[1] if best else None


def _rank(domain: str, name: str) -> tuple[int, int] | None:
    """The rank of a domain's match, higher is better; None without a match. A wildcard needs one character."""
    if domain == "*":
        return 0, 0
    if domain == name:
        return 3, 0
    if len(domain) > len(name):
        return None
    if domain.startswith("*"):
        return (2, len(domain)) if name.endswith(domain[1:]) else None
    if domain.endswith("*"):
        return (1, len(domain)) if name.startswith(domain[:-1]) else None
    return None


def port_start(authority: str) -> int | None:
    """The position of the colon before a Host header's port; None without one (HeaderUtility::getPortStart)."""
    colon = authority.rfind(":")
    # An IPv6 address has its colons in brackets.
    return None if colon < 0 or authority.rfind("]") > colon else colon


def route_misses(match: Node, request: HttpCall) -> str | None:
    """Why a route does not match a request; None if it does. Unclear if that can't be decided."""
    fields = match.fields()
    if why := _path_misses(match, fields, request.path):
        return why
    for each in match.get("headers").each():
        if why := header_misses(each, request):
            return why
    for each in match.get("query_parameters").each():
        if why := _parameter_misses(each, request.path):
            return why
    # Unsupported fields matter only if everything else matches.
    if unknown := sorted(fields.keys() - FOLLOWED):
        raise Unclear(f"{match.path} matches by {', '.join(map(plain, unknown[:3]))}, which is not followed")
    return None


def _path_misses(match: Node, fields: dict[str, Node], whole: str) -> str:
    specifiers = [name for name in PATHS if name in fields]
    if not specifiers:
        raise Unclear(f"{match.path} names no path")
    kind = specifiers[0]
    if kind not in FOLLOWED:
        raise Unclear(f"{match.path} matches by {kind}, which is not followed")
    path = bare(whole)
    if kind == "safe_regex":
        expression = match.at("safe_regex", "regex").text()
        matched = string_matches({"safe_regex": match.get("safe_regex")}, path, ignore_case=False)
        return "" if matched else f"{plain(path)} does not match {plain(expression)}"
    pattern = match.get(kind).text()
    one, other = (path, pattern) if match.get("case_sensitive").flag(True) else (path.lower(), pattern.lower())
    if kind == "path":
        return "" if one == other else f"the path is {plain(path)}, not {plain(pattern)}"
    begins = one.startswith(other)
    if kind == "path_separated_prefix" and begins:
        begins = one[len(other) :][:1] in {"", "/"}
    return "" if begins else f"the path is {plain(path)}, not under {plain(pattern)}"


VALUES = ("exact_match", "safe_regex_match", "prefix_match", "suffix_match", "contains_match")


def header_misses(node: Node, request: HttpCall) -> str:
    """Why a header does not match, or empty."""
    name, fields = node.get("name").text(), node.fields()
    if unknown := sorted(fields.keys() - {*VALUES, "name", "string_match", "range_match", "present_match",
            "invert_match", "treat_missing_header_as_empty"}):  # fmt: skip
        raise Unclear(f"{node.path} matches by {', '.join(map(plain, unknown[:3]))}, which is not followed")
    values, inverted = request.header(name), node.get("invert_match").flag()
    if not values and node.get("treat_missing_header_as_empty").flag():
        values = ("",)
    if "present_match" in fields or not fields.keys() & {*VALUES, "string_match", "range_match"}:
        matched = bool(values) == node.get("present_match").flag(True)
    elif not values:
        # A missing header does not match, even inverted.
        return f"no header {plain(name)}"
    else:
        matched = any(_value_matches(fields, value) for value in values)
    if matched != inverted:
        return ""
    return f"header {plain(name)} is {plain(', '.join(values))}" if values else f"no header {plain(name)}"


def _value_matches(fields: dict[str, Node], value: str) -> bool:
    if "range_match" in fields:
        within = fields["range_match"]
        sign, digits = (value[0], value[1:]) if value[:1] in {"-", "+"} else ("", value)
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):
            return False
        return within.get("start").number() <= int(sign + digits) < within.get("end").number()
    if "string_match" in fields:
        matcher = fields["string_match"]
        return string_matches(matcher.fields(), value, ignore_case=matcher.get("ignore_case").flag())
    name = next(each for each in VALUES if each in fields)
    return string_matches({name.removesuffix("_match"): fields[name]}, value, ignore_case=False)


def _parameter_misses(node: Node, path: str) -> str:
    name, fields = node.get("name").text(), node.fields()
    value = next((value for key, value in parameters(path) if key == name), None)
    if "string_match" in fields:
        matcher = fields["string_match"]
        folded = matcher.get("ignore_case").flag()
        matched = value is not None and string_matches(matcher.fields(), value, ignore_case=folded)
    else:
        matched = (value is not None) == node.get("present_match").flag(True)
    return "" if matched else f"parameter {plain(name)} is {'missing' if value is None else plain(value)}"


def parameters(path: str) -> Iterator[tuple[str, str]]:
    """The parameters of a path's query, as they are written."""
    _, _, query = path.partition("#")[0].partition("?")
    for each in query.split("&") if query else ():
        name, _, value = each.partition("=")
        yield name, value


def plain_domains(host: Node) -> tuple[str, ...]:
    """The domains of a virtual host that are names or addresses, without wildcards."""
    return tuple(each for each in host.get("domains").texts() if "*" not in each)
