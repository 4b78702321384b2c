"""Shows one captured connection: connects to an address, and prints which local port answered instead.

Usage: captured.py ADDRESS PORT, in a network namespace that has the rules. Plays both the application, which connects,
and Envoy's outbound listener on port 15001, which asks the kernel for the original destination.
"""

from __future__ import annotations

import socket
import struct
import sys

SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>
OUTBOUND_PORT = 15001


def main() -> None:
    """Connect, accept, and print both ends."""
    address, port = sys.argv[1], int(sys.argv[2])
    with socket.create_server(("0.0.0.0", OUTBOUND_PORT)) as listener:
        listener.settimeout(5)
        with socket.create_connection((address, port), timeout=5) as application:
            proxy, _ = listener.accept()
            with proxy:
                original = proxy.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
                original_port, packed = struct.unpack("!2xH4s8x", original)
                source = "{}:{}".format(*application.getsockname())
                print(f"{source} connected to {address}:{port}")
                print(f"port {OUTBOUND_PORT} answered; SO_ORIGINAL_DST: {socket.inet_ntoa(packed)}:{original_port}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as a shell has it
