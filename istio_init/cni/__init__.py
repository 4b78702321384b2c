"""The CNI plugin `istio-init-cni`: what a container runtime asks of it, by the same Options, plans and commands."""
