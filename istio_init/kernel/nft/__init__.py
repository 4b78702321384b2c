"""nf_tables: iptables-nft's tables and native nftables."""
