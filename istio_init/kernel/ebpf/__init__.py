"""Capture by eBPF: bpf(2), the programs as data, and what a node and each pod have of them."""
