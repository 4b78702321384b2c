"""What the kernel acknowledged is not read again, as long as nobody else has written since."""

from __future__ import annotations

import pytest

from integration.kernel.test_native import planned
from integration.kit.namespace import Namespace
from istio_init.errors import KernelError
from istio_init.kernel.nft import compat, native
from istio_init.model.compare import TableChange
from istio_init.model.differences import differences
from tests.planning.cases import argv

OTHERS = {"compat": "add rule ip nat ISTIO_OUTPUT counter accept", "native": "delete table inet istio-proxy-nat"}


@pytest.mark.parametrize(("module", "reader"), [(compat, "read_tables"), (native, "dump_tables")])
def test_the_next_generation_answers_for_the_tables(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, module: object, reader: str
) -> None:
    plan = planned(argv("article-tproxy"))
    firewall = compat.IptablesNft() if module is compat else native.Nftables()
    if isinstance(firewall, native.Nftables):
        firewall.expect(plan.rulesets)
    changes = tuple(TableChange(each.family, table.name, table) for each in plan.rulesets for table in each.tables)

    def drift() -> list[object]:
        return [
            each for desired in plan.rulesets for each in differences(desired, firewall.read(desired.family, desired))
        ]

    assert namespace.inside(drift)
    namespace.inside(lambda: firewall.write(changes))
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise KernelError("read again")

        patched.setattr(module, reader, refuse)
        assert not namespace.inside(drift)
        namespace.run("nft", "add table inet mine")
        with pytest.raises(KernelError, match="read again"):
            namespace.inside(drift)
    assert not namespace.inside(drift)
    namespace.run("nft", OTHERS["compat" if module is compat else "native"])
    assert namespace.inside(drift)
    namespace.inside(lambda: firewall.write(changes))
    assert not namespace.inside(drift)
