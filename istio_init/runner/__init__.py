"""One run: choose a backend, resolve defaults, dry run or transaction, cleanup, validation."""
