"""Rules in the tables of two backends: a packet meets both, and the one that decides is named, as the kernel has it."""

from __future__ import annotations

from typing import Any

import pytest

from integration.kit.asking import ask
from integration.kit.pod import Pod
from istio_init.model.rules import IPV4

OPTIONS = ("-u", "1337", "-i", "*", "-b", "*")


def answer(pod: Pod, verb: str, *question: str) -> Any:  # noqa: ANN401 (JSON)
    return ask(pod.namespace, verb, "--live", *question, *OPTIONS, "--output", "json").document


@pytest.mark.parametrize("other", ["iptables-nft"])
def test_a_rule_of_another_backend_decides(other: str) -> None:
    with Pod(IPV4) as pod:
        pod.apply("-u 1337 -i '*' -b '*'")
        rule = "OUTPUT -p tcp --dport 5432 -j DNAT --to-destination 203.0.113.77:6432"
        pod.namespace.run(other, "-t", "nat", "-A", *rule.split())
        explained = answer(pod, "explain", "--outbound", "--to", "203.0.113.9:5432")
        spared = answer(pod, "explain", "--outbound", "--to", "203.0.113.9:80")
        proved = answer(pod, "prove")
    assert explained["verdict"] == "not captured"
    assert "203.0.113.77:6432, because OUTPUT rule 1 of nat (nft)" in explained["fate"]
    assert spared["verdict"] == "captured"
    broken = {fault["claim"] for fault in proved["faults"]}
    assert "outbound TCP goes to Envoy unless it is excluded (-i)" in broken
    assert "inbound TCP goes to Envoy unless it is excluded (-b)" not in broken
