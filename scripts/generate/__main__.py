"""All that is generated from the tables: `python -m scripts.generate` writes it anew."""

from __future__ import annotations

from pathlib import Path

from scripts.generate import api_page, man_pages, options_page, options_stub, schema_table, schemas
from tests.kit.transcripts import transcribed

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    (ROOT / "docs/options.md").write_text(options_page.page())
    cni = ROOT / "docs/cni.md"
    cni.write_text(options_page.filled(cni.read_text()))
    man_pages.write(str(ROOT / "docs/man"))
    (ROOT / "istio_init/options/public.pyi").write_text(options_stub.page())
    (ROOT / "docs/api.md").write_text(api_page.page())
    for name in schema_table.SCHEMAS:
        (ROOT / f"istio_init/schemas/{name}.v1.json").write_text(schemas.file(name))
    (ROOT / "docs/json.md").write_text(transcribed(schemas.page()))
