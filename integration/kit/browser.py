"""Debian's Chromium, driven over WebDriver, for pages that are files."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Self

from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# Root has no sandbox, a container little shared memory.
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1440,1000")
PATIENCE = 120


def _program(program: str) -> str:
    path = shutil.which(program)
    assert path, f"{program} is not installed"
    return path


class Browser:
    """One browser, closed at the end of a `with` statement."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = _program("chromium")
        for switch in SWITCHES:
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(_program("chromedriver")))
        self.driver.set_script_timeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.driver.quit()

    def open(self, page: Path) -> None:
        """Show a file."""
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401 (JSON)
        """What a function's body in JavaScript returns; it has its `arguments`."""
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the browser wrote to its console since this was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def emulate(self, *, dark: bool = False, width: int = 0) -> None:
        """Prefer a dark ground or a light one; on a screen that is `width` pixels wide, or as wide as the window."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        if width:
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
            self._command("Emulation.setDeviceMetricsOverride", **screen)
        else:
            self._command("Emulation.clearDeviceMetricsOverride")

    def _command(self, name: str, **arguments: object) -> None:
        self.driver.execute_cdp_cmd(name, arguments)

    def barriers(self) -> list[str]:
        """What axe-core, which looks for what keeps people from using a page, complains of."""
        result = Axe().run(self.driver)["violations"]
        return [f"{each['id']}: {node['html']}: {node['failureSummary']}" for each in result for node in each["nodes"]]
