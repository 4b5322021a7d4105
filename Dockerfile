# The images mic and nmi. podid is one static program; mic's image has it and the certificates of public authorities, nmi's also
# the tools by which it changes the node's network.
#   docker buildx build --platform linux/amd64,linux/arm64 --target mic -t REGISTRY/mic:TAG --push .
#   docker buildx build --platform linux/amd64,linux/arm64 --target nmi -t REGISTRY/nmi:TAG --push .

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Built for the machine's own kind, statically; the same source gives the same bytes wherever it lies.
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH
RUN target="$(uname -m)-unknown-linux-gnu" \
    && RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/src=/podid --remap-path-prefix=$CARGO_HOME=/cargo" \
       cargo build --locked --release --no-default-features -p podid --target "$target" \
    && install -D "target/$target/release/podid" /out/podid

FROM scratch AS mic
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/podid /podid
USER 65532:65532
ENTRYPOINT ["/podid", "mic"]

FROM debian:bookworm-slim AS nmi
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates conntrack iproute2 iptables kmod nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out/podid /podid
ENTRYPOINT ["/podid", "nmi"]
