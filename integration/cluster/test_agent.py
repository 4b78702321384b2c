"""The node agent on a real node, as deploy/ runs it: its rights, its watch over TLS, and what it knows of pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from integration.cluster.node import KubernetesNode
from integration.cluster.plugin import INJECTED, LABEL, PLAIN, leaves_nothing, rolled_out
from integration.cluster.workload import APP, DIAL, QUERY, WITNESS, address, answering, container, dial, dial_in, pod
from istio_init.options.annotations import INJECT

MANY = 8
READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.fixture(scope="module")
def agent(node: KubernetesNode) -> Iterator[None]:
    """The objects of deploy/, applied as they are but for the image's name."""
    node.kubectl("apply", "--filename=-", text=PLAIN)
    rolled_out(node)
    yield
    node.kubectl("delete", "--filename=-", "--wait=true", text=PLAIN)
    node.until(lambda: leaves_nothing(node), "the plugin to go")


def metrics(node: KubernetesNode) -> str:
    return node.run("python3", "-c", READ, "http://127.0.0.1:15014/metrics")


@pytest.mark.usefixtures("agent")
def test_its_log_and_its_metrics_know_the_pod(node: KubernetesNode, namespace: str) -> None:
    node.apply(pod("web", annotations=INJECTED), namespace)
    node.wait_for_pod("web", namespace)
    assert dial_in(node, namespace, "web").startswith("15006")
    node.until(
        lambda: f'"pod": "web", "namespace": "{namespace}"' in node.kubectl("-n=kube-system", "logs", f"-l={LABEL}"),
        "the pod's line in the agent's output",
    )
    text = metrics(node)
    assert 'istio_init_cni_adds_total{decision="captured"}' in text
    assert "istio_init_cni_watching 1.0" in text
    assert "istio_init_cni_ready 1.0" in text


@pytest.mark.usefixtures("agent")
def test_a_label_counts_more_than_an_annotation(node: KubernetesNode, namespace: str) -> None:
    labelled = pod("web", annotations={**INJECTED, INJECT: "true"}, labels={INJECT: "false"})
    node.apply(labelled, namespace)
    node.wait_for_pod("web", namespace)
    assert not dial_in(node, namespace, "web").startswith("15006")


@pytest.mark.usefixtures("agent")
def test_variables_of_the_sidecar_decide(node: KubernetesNode, namespace: str) -> None:
    result = yaml.safe_load(pod("web", annotations=INJECTED))
    result["spec"]["containers"][1]["env"] = [{"name": "DISABLE_ENVOY", "value": "true"}]
    node.apply(yaml.safe_dump(result), namespace)
    node.wait_for_pod("web", namespace)
    assert not dial_in(node, namespace, "web").startswith("15006")


@pytest.mark.usefixtures("agent")
def test_the_sidecars_user_and_its_variables_are_known(node: KubernetesNode, namespace: str) -> None:
    """A user as OpenShift assigns it, and DNS capture by what the whole mesh sets: neither is in an annotation."""
    proxy = container("istio-proxy", WITNESS, 1000650000)
    proxy["env"] = [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}]
    node.apply(pod("web", containers=[container("app", APP, 1000), proxy], annotations=INJECTED), namespace)
    node.apply(pod("plain"), namespace)
    for name in ("web", "plain"):
        node.wait_for_pod(name, namespace)
    assert node.kubectl("-n", namespace, "exec", "web", "-c", "app", "--", "python3", "-c", QUERY).strip() == "15053"
    plain = address(node, namespace, "plain")
    assert dial(node, namespace, "web", (plain, 8080)) == f"15001 {plain} 8080"
    # The sidecar's own connections are not captured.
    own = ("exec", "web", "-c", "istio-proxy", "--", "python3", "-c", DIAL, plain, "8080")
    assert "200 OK" in node.kubectl("-n", namespace, *own)


@pytest.mark.usefixtures("agent")
def test_pods_that_start_while_the_agent_is_killed_are_captured(node: KubernetesNode, namespace: str) -> None:
    names = [f"web-{number}" for number in range(MANY)]
    node.apply("---\n".join(pod(name, annotations=INJECTED) for name in names), namespace)
    # In the node's own process namespace.
    node.run("sh", "-c", "kill -9 $(pgrep -f '[i]stio-init cni agent')")
    node.wait_for_pods(names, namespace)
    assert answering(node, namespace) == dict.fromkeys(names, "15006")
