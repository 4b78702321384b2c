"""Shows one captured connection: dials an address and tells which local port answered in its place.

Usage: captured.py ADDRESS PORT, in a network namespace where the rules stand. Plays both the application,
which dials, and Envoy's outbound listener on port 15001, which asks the kernel where the connection was going.
"""

from __future__ import annotations

import socket
import struct
import sys

SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>
OUTBOUND_PORT = 15001


def main() -> None:
    """Dial, accept, and print both ends."""
    address, port = sys.argv[1], int(sys.argv[2])
    with socket.create_server(("0.0.0.0", OUTBOUND_PORT)) as listener:
        listener.settimeout(5)
        with socket.create_connection((address, port), timeout=5) as application:
            proxy, _ = listener.accept()
            with proxy:
                original = proxy.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
                wanted_port, packed = struct.unpack("!2xH4s8x", original)
                source = "{}:{}".format(*application.getsockname())
                print(f"{source} dialled {address}:{port}")
                print(f"port {OUTBOUND_PORT} answered; SO_ORIGINAL_DST: {socket.inet_ntoa(packed)}:{wanted_port}")


if __name__ == "__main__":
    main()
