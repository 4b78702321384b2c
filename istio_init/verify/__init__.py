"""Checks invariants for all packets, by classes of packets."""
