"""The error numbers that the program has itself, compared with Python's."""

from __future__ import annotations

import errno

from istio_init.kernel.host import error_numbers


def test_they_are_pythons() -> None:
    own = {name: value for name, value in vars(error_numbers).items() if name.isupper()}
    assert own == {name: getattr(errno, name) for name in own}
    assert len(own) > 20
