"""The verbs of `istio-init`, one module each; subject.py reads the rules that they inspect."""
