"""The plugin on a node: installation, the entry in the network configuration, repair of pods it missed."""
