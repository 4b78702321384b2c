"""Tests on a real Kubernetes node: control plane, kubelet, kube-proxy, containerd, CoreDNS, in its own namespaces."""
