"""`istio-init apply` and `clean`: one run, reported in log lines or as one JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.verbs.output import choice, print_json
from istio_init.errors import InitError
from istio_init.errors_rare import UsageError
from istio_init.log import LEVELS, Log
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.runner import dry_run
from istio_init.runner.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Output = Annotated[str, typer.Option("--output", metavar="text|json", help="Log lines, or one JSON document.")]


class RecordedLog(Log):
    """A log that keeps its lines, and writes them only to the targets that are named."""

    def __init__(self, level: str, targets: tuple[str, ...] = ()) -> None:
        super().__init__(level, targets=targets)
        self._kept_level, self._has_targets = LEVELS[level], bool(targets)
        self.lines: list[tuple[str, str]] = []

    def _write(self, level: str, message: str) -> None:
        if LEVELS[level] <= self._kept_level:
            self.lines.append((level, message))
        if self._has_targets:
            super()._write(level, message)


def verb(name: str, environ: Mapping[str, str], **changes: bool) -> Callable[..., int]:
    """The verb of this name: a run with the options and these changes."""

    def command(options: Options, *, output: Output = "text") -> int:
        options = options.replace(**changes)
        if choice("--output", output, ("text", "json")) == "text":
            return run(options, environ)
        return report(name, options, environ)

    return command


def report(name: str, options: Options, environ: Mapping[str, str]) -> int:
    """Run with these options and print what was done as JSON; returns the run's exit code."""
    log = RecordedLog(options.log_output_level, options.log_target)
    rules = None
    if options.dry_run and options.capture_backend == "ebpf":
        raise UsageError("--output json: --dry-run prints JSON with --capture-backend ebpf anyway; leave it out")
    if options.dry_run:
        try:
            rules, code = dry_run.render(options, log), 0
        except InitError as error:
            log.error(str(error))  # noqa: TRY400 (a user's line, no traceback)
            code = error.exit_code
    else:
        code = run(options, environ, log=log)
    last = log.lines[-1][1] if log.lines else ""
    lines = [{"level": level, "message": message} for level, message in log.lines]
    print_json("run", {"verb": name, "code": code, "summary": last, "log": lines, "rules": rules})
    return code
