"""A container's command line as a call of istio-iptables: its arguments, or that they can't be known. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from istio_init.errors import shown
from istio_init.options.argv import parse

if TYPE_CHECKING:
    from istio_init.options.podspec import Container

PROGRAMS = {"istio-iptables", "istio-clean-iptables", "istio-init", "pilot-agent"}
# The verbs of `istio-init` that change rules, and the program that means the same.
VERBS = {"apply": "istio-iptables", "clean": "istio-clean-iptables"}
# A container whose script mentions one of these may make rules.
MENTIONS = ("istio-iptables", "istio-clean-iptables")
# Images whose program makes rules of its flags: Istio's of all releases, and ours.
RULE_IMAGES = frozenset({"proxy_init", "proxyv2", "istio-init", "istio-iptables"})
# A program that writes rules of any kind, in a command or a script.
RULE_WRITER = re.compile(r"(?:^|[\s;&|(/])(ip6?tables(?:-nft|-legacy)?(?:-restore)?|nft)(?:\s|$)")


def call(container: Container, *, named: bool) -> list[str] | None:
    """A container's arguments behind the program's name; None where it does not call istio-iptables.

    ValueError where it may call it in a way that can't be read, such as in a shell script: then its rules are unknown.
    The template of a pod may lay an image alone over what the injection is to put in.
    """
    words, program, position = container.words, "", 0
    while position < len(words) and (called := words[position].rpartition("/")[2]) in PROGRAMS:
        program, position = called, position + 1
    if program == "istio-init":
        program, position = VERBS.get(words[position] if position < len(words) else "", ""), position + 1
    if program == "istio-clean-iptables":
        return ["--cleanup-only", *container.argv[position:]]
    if program == "istio-iptables":
        return container.argv[position:]
    # Flags alone are for the image's own program; that of these images writes rules.
    flags_alone = words[:1] and words[0].startswith("-") and not container.body.get("command")
    of_image = container.init and flags_alone and _image_name(container) in RULE_IMAGES
    if words and (named or of_image or any(mention in word for word in words for mention in MENTIONS)):
        raise ValueError(
            f"{container.title}: {shown(' '.join(words))}: its rules can't be known: not a plain call of "
            "istio-iptables; give its options as flags instead of --from-pod"
        )
    return None


def _image_name(container: Container) -> str:
    """The last part of the image's name, without tag and digest."""
    return re.split("[@:]", str(container.body.get("image")).rpartition("/")[2])[0]


def parsed(container: Container, argv: list[str], stray: list[str]) -> dict[str, str]:
    """The options' texts; ValueError where an argument is none of istio-iptables'. What is no flag goes to `stray`."""
    texts = parse(argv, stray)
    if texts is not None:
        return texts
    # The first argument with which, and with whatever follows it, the command line stops making sense.
    ends = [parse(argv[: end + 1], []) is None for end in range(len(argv))]
    wrong = next(n for n, bad in enumerate(ends) if bad and all(ends[n : n + 2]))
    raise ValueError(
        f"{container.title}: args: {shown(argv[wrong])}: no option of istio-iptables, or without its value"
    )


def rule_writer(container: Container) -> str:
    """The program in a container's command that writes rules other than Istio's; empty where none is seen."""
    match = next(filter(None, map(RULE_WRITER.search, container.words)), None)
    return match[1] if match else ""
