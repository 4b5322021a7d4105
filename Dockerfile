# The images mic and nmi. podid is one static program; mic's image has it and the certificates of public authorities, nmi's also
# the tools by which it changes the node's network. Both say in /podid.cdx.json of what podid consists.
#   docker buildx build --platform linux/amd64,linux/arm64 --target mic -t REGISTRY/mic:TAG --push .
#   docker buildx build --platform linux/amd64,linux/arm64 --target nmi -t REGISTRY/nmi:TAG --push .

# Others for whoever has them in a registry of their own. RUST is a Debian or Ubuntu with Rust.
ARG RUST=docker.io/library/rust:1.95-bookworm
ARG DEBIAN=docker.io/library/debian:bookworm-slim

FROM ${RUST} AS build
ENV CARGO_HOME=/usr/local/cargo
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc jq libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# It lists the parts; made quickly, since it runs once.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target/tools cargo install --quiet --debug --locked --root /usr/local cargo-cyclonedx@0.5.9
WORKDIR /src
COPY . .
# The same source gives the same bytes.
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target tools/image/static /out/podid \
    && tools/image/sbom /out/podid.cdx.json

FROM scratch AS mic
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/ /
USER 65532:65532
ENTRYPOINT ["/podid", "mic"]

FROM ${DEBIAN} AS nmi
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates conntrack iproute2 iptables kmod nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out/ /
ENTRYPOINT ["/podid", "nmi"]
