"""Every spelling of the model: iptables-save text both ways, `iptables -L` columns, phrases, nft listings, YAML."""
