"""Command lines: the fast start, the image's entry point, the Typer application and its verbs."""
