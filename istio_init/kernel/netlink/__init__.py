"""Netlink: routing, nfnetlink batches, conntrack."""
