"""`cni status` and `cni install` agree: a node is in place exactly if an installation would change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from istio_init.cni.node import install
from istio_init.cni.node.conflist import PLUGIN
from istio_init.cni.node.directories import Directories
from istio_init.errors import InitError

ENTRY = {"type": PLUGIN, "capabilities": {"io.kubernetes.cri.pod-annotations": True}}
PLUGINS = st.lists(
    st.sampled_from([{"type": "bridge"}, {"type": "portmap"}, ENTRY, {"type": PLUGIN, "other": 1}]),
    min_size=1,
    max_size=4,
)


@given(PLUGINS, st.sampled_from([None, "0.2.0", "1.0.0"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_place_means_that_there_is_nothing_to_do(
    tmp_path: Path, plugins: list[dict[str, object]], version: str | None
) -> None:
    networks, programs, source = (tmp_path / name for name in ("networks", "programs", "plugin"))
    for directory in (networks, programs):
        directory.mkdir(exist_ok=True)
    source.write_text("#!/bin/sh\n")
    head = {"cniVersion": version} if version else {}
    (networks / "10-pods.conflist").write_text(json.dumps({**head, "name": "pods", "plugins": plugins}))
    places = Directories(str(networks), str(programs))
    before = install.status(places, ENTRY)
    try:
        done = install.install(places, str(source), ENTRY)
    except InitError:
        assert before.entry != "in place"
        return
    changed = [line for line in done if "conflist" in line]
    assert (before.entry == "in place") == (not changed), plugins
    assert install.status(places, ENTRY).whole
    assert install.install(places, str(source), ENTRY) == ()


@pytest.mark.parametrize("version", ["0.5.0", "9"])
def test_a_version_that_the_plugin_refuses_is_never_in_place(tmp_path: Path, version: str) -> None:
    network = {"cniVersion": version, "name": "pods", "plugins": [{"type": "bridge"}, ENTRY]}
    (tmp_path / "10-pods.conflist").write_text(json.dumps(network))
    with pytest.raises(InitError, match="keep every pod from starting"):
        install.status(Directories(str(tmp_path), str(tmp_path)), ENTRY)


@pytest.mark.parametrize(("types", "warned"), [(["bridge", "istio-cni"], True), (["bridge", "portmap"], False)])
def test_istios_own_plugin_in_the_same_list_is_told(tmp_path: Path, types: list[str], warned: bool) -> None:
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": each} for each in types]}
    (tmp_path / "10-pods.conflist").write_text(json.dumps(network))
    assert bool(install.rivals(str(tmp_path))) == warned
