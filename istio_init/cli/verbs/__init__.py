"""The verbs of `istio-init` that ask questions: one module each, and subject.py for what they ask about."""
