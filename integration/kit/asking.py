"""The verbs of `istio-init`, called in this process and inside of a namespace."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.cli.app import main
from tests.kit.schemas import validated

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace


class Answer(NamedTuple):
    """A verb's exit code, and what it wrote to both outputs."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:  # noqa: ANN401 (each verb has its own)
        """The output, which is JSON and what its schema says."""
        return validated(self.output)


def ask(namespace: Namespace, *argv: str) -> Answer:
    """Run the verb that `argv` begins with; no variable of the environment counts."""
    output, errors = io.StringIO(), io.StringIO()

    def work() -> int:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            return main(argv, {})

    code = namespace.inside(work)
    return Answer(code, output.getvalue(), errors.getvalue())
