"""The CNI plugin: one call of a container runtime, from its JSON to its result."""
