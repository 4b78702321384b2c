"""Capture put into workloads: text spliced into their files, and policies by which the API server does it."""
