"""`python -m istio_init` is `istio-iptables`."""

import gc

if __name__ == "__main__":
    # The process is over before a collection would pay.
    gc.disable()
    from istio_init.cli.start import istio_iptables

    istio_iptables()
