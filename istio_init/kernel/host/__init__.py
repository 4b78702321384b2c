"""The host: libc, network namespaces, the xtables lock, files, accounts, processes."""
