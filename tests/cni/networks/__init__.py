"""Networks as those who make them write them, and lists that no runtime would take."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent

# flannel's ConfigMap, Calico's and Cilium's installers, kind's kindnetd, containerd's and podman's packages.
LISTS = {path.stem: path.read_text() for path in sorted(HERE.glob("*.conflist"))}
# What GKE's nodes begin with: a single plugin.
SINGLE = (HERE / "10-gcp-ptp.conf").read_text()

# What is wrong, by what the error says of it.
BROKEN = {
    "": "no JSON: line 1, column 1",
    '{"name": "half", "plugins": [{"type": "brid': "no JSON: line 1",
    '{"name": "a", "plugins": [{"type": "b"}]} {}': "Extra data",
    '{"name": "a", "plugins": [{"type": "b", "mtu": NaN}]}': "NaN is no JSON",
    '{"name": "a", "plugins": [{"type": "b"}],}': "no JSON",
    "[]": "no JSON object",
    "null": "no JSON object",
    '"plugins"': "no JSON object",
    "{}": 'no "name"',
    '{"name": 1, "plugins": [{"type": "b"}]}': 'no "name"',
    '{"name": "a"}': 'no "plugins"',
    '{"name": "a", "plugins": {}}': 'no "plugins"',
    '{"name": "a", "plugins": []}': 'no "plugins"',
    '{"name": "a", "plugins": [{"type": "b"}], "plugins": [{"type": "c"}]}': '"plugins" twice',
    '{"name": "a", "plugins": [{"type": "b"}, {}]}': 'plugin 2 has no "type"',
    '{"name": "a", "plugins": [{"type": 1}]}': 'plugin 1 has no "type"',
    '{"name": "a", "plugins": ["b"]}': 'plugin 1 has no "type"',
    '{"name": "a", "plugins": [{"type": "istio-init-cni"}]}': "no plugin but istio-init-cni",
    '{"name": "a", "plugins": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deep",
    "\ufeff{}": "no JSON",
}
