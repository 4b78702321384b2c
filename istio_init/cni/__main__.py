"""`python -m istio_init.cni` is `istio-init-cni`."""

if __name__ == "__main__":
    from istio_init.cni.plugin.plugin import main

    main()
