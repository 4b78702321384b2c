"""Rulesets as nftables has them: rules merged into sets, and the text that `nft list` prints."""
