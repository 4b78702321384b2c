"""Spliced sockets have no back-pressure on this kernel, which is why capture by eBPF splices none (docs/ebpf.md).

Where this fails, a kernel has learned it: splicing may be worth another look.
"""

from __future__ import annotations

import re
import sys

from integration.kit.namespace import Namespace
from integration.kit.program import ROOT


def test_a_spliced_sender_is_not_slowed_down(namespace: Namespace) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "splice-backpressure"), "--limit", "48"]
    done = namespace.completed(*script)
    assert done.returncode == 0, done.stdout + done.stderr
    sent = {
        name: float(amount) for name, amount in re.findall(r"^(\w[\w ]*?) +([\d.]+) MiB", done.stdout, re.MULTILINE)
    }
    assert sent.keys() == {"plain TCP", "sk_msg", "sk_skb"}
    assert sent["plain TCP"] < 12, "what two sockets' buffers hold"
    assert min(sent["sk_msg"], sent["sk_skb"]) > 4 * sent["plain TCP"]
