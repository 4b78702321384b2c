"""Read-only questions to the kernel: backend detection, listeners, counters, test connections."""
