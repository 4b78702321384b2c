"""All packets at once: invariants checked against every class of packets."""
