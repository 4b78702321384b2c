"""Rulesets as nftables has them: sets and maps, libnftables' JSON both ways, and the text that `nft list` prints."""
