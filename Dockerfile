# The init container: istio-iptables and the files it reads, nothing else. docs/image.md says what is inside and why.
# With `--target cni` it is the image for nodes, which installs the CNI plugin: docs/cni-bundle.md.
#
# BASE is only built in, and any Debian or Ubuntu with Python 3.11 or later will do. No `# syntax=` line: it would
# fetch a frontend from a registry.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        libip4tc2 libip6tc2 patchelf python3 python3-pip python3-yaml \
    && rm -rf /var/lib/apt/lists/*
COPY image/requirements.txt /image/
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --target /dependencies \
        --requirement /image/requirements.txt
COPY image/assemble.py image/bundle.py image/slim.py image/launcher.py /image/
COPY LICENSE /
COPY istio_init /program/istio_init
ARG SOURCE_DATE_EPOCH=0
# Without the columns of each instruction, which only a traceback would show, byte code is a tenth smaller.
RUN python3 -I -S -X no_debug_ranges /image/assemble.py /program /dependencies /root-of-image

FROM build AS build-cni
COPY image/requirements-cni.txt /image/
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --target /dependencies-cni \
        --requirement /image/requirements-cni.txt
COPY image/node.py image/plugin.py image/plugin_launcher.py /image/
RUN python3 -I -S -X no_debug_ranges /image/node.py /program /dependencies-cni /root-of-image

FROM scratch AS labelled
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="istio-init" \
      org.opencontainers.image.description="Programs a pod's network namespace so that a sidecar proxy sees all its TCP traffic; a drop-in for istio-iptables" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# Runs to its end in milliseconds, or is asked by a probe of its own: there is no health to ask for.
HEALTHCHECK NONE
ENV PATH=/usr/local/bin:/usr/bin
WORKDIR /

FROM labelled AS cni
COPY --from=build-cni /root-of-image/ /
ENTRYPOINT ["/usr/local/bin/istio-init"]

FROM labelled
COPY --from=build /root-of-image/ /
ENTRYPOINT ["/usr/local/bin/istio-iptables"]
