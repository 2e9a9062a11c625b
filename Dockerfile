# The image of the daemon. It has one binary and no shell, does not run as root, and writes nothing
# to the file system.
#
#   docker build -t ringfence:0.1.0 .
#   install -d -o 65532 -g 65532 /run/ringfence
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges \
#       -v /run/ringfence:/run/ringfence \
#       ringfence:0.1.0 serve --listen unix:/run/ringfence/ringfence.sock --listen 127.0.0.1:50051
#
# Plain `serve` listens on the container's own loopback, which a published port does not reach. To
# be reached over TCP, the daemon needs `--listen 0.0.0.0:50051 --set server.insecure_listen=true`.
# Anyone who reaches the port can then run code.

# Both images are Debian 12, because the binary needs a glibc at least as new as the one that it was
# linked against. Override them to use mirrors or digests, or on a machine without a registry (as
# .ci/manifests does).
ARG BUILD_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ringfence" \
      org.opencontainers.image.description="A gRPC daemon that runs untrusted WebAssembly under hard limits" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Numeric, because Kubernetes cannot check runAsNonRoot against a name.
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/ringfence"]
CMD ["serve"]
# This asks the default listener. RINGFENCE_SERVER names another one, such as `-e
# RINGFENCE_SERVER=unix:/run/ringfence/ringfence.sock` for a container that listens there. That
# socket answers whatever [tls] and [auth] require of other callers. Kubernetes ignores this check
# (deploy/README.md). So does an image in OCI format: buildah needs --format docker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["/usr/bin/ringfence", "health"]

# `--target prebuilt` takes the file `ringfence` from a build context that needs nothing else. It
# comes before the build stage, so that a builder that runs every stage up to its target compiles
# nothing.
FROM runtime AS prebuilt
COPY --chmod=0555 ringfence /usr/bin/ringfence

FROM ${BUILD_IMAGE} AS build
# "dist" (fat LTO, stripped) or "release". Cargo puts the output of either profile into a folder of
# the same name.
ARG PROFILE=dist
WORKDIR /src
COPY . .
# Without the caches, wasmtime would be compiled again after every change of a source file. A cache
# mount is not part of the image, so the binary must be copied out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile "$PROFILE" --locked --bin ringfence \
    && cp "target/$PROFILE/ringfence" /ringfence

FROM runtime
COPY --from=build --chmod=0555 /ringfence /usr/bin/ringfence
