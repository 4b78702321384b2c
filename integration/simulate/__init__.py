"""What is followed packet by packet, in real namespaces."""
