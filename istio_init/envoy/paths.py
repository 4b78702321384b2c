"""Path normalization as in Envoy (source/common/http/path_utility.cc, googleurl's canonicalization)."""

from __future__ import annotations

UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
HEX = frozenset("0123456789abcdefABCDEF")


def bare(path: str) -> str:
    """A path without its query and fragment."""
    end = min((at for mark in "?#" if (at := path.find(mark)) >= 0), default=len(path))
    return path[:end]


def normalized(path: str) -> str:
    """A path without dot segments, and with escaped letters, digits and -._~ decoded (normalize_path)."""
    name = bare(path)
    rest = path[len(name) :]
    if not name.startswith("/"):
        return path
    segments: list[str] = []
    parts = _unescaped(name.replace("\\", "/")).split("/")[1:]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part in {".", ".."}:
            if part == ".." and segments:
                segments.pop()
            if last:
                segments.append("")
        else:
            segments.append(part)
    return "/" + "/".join(segments) + rest


def _unescaped(name: str) -> str:
    result, at = "", 0
    while at < len(name):
        code = name[at + 1 : at + 3]
        if name[at] == "%" and len(code) == 2 and set(code) <= HEX and chr(int(code, 16)) in UNRESERVED:
            result += chr(int(code, 16))
            at += 3
        else:
            result += name[at]
            at += 1
    return result
