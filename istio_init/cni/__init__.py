"""The CNI plugin (`cni.plugin`) and its installation on a node (`cni.node`)."""
