"""What the capture costs a packet, a request and a sandbox's start: the measurements behind scripts/*-cost."""
