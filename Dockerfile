# The images of Nereid:
#   docker build -t nereid .                             CPU; models are mounted at /models
#   docker build -t nereid:cuda --build-arg VARIANT=cuda .
#   docker build -t nereid:example --target example .    with the models of model_repository/
# No image but the client's holds Python.
# `scripts/image` runs these steps without a container engine and says what each image would weigh.

ARG RUST=1.95.0
ARG DEBIAN=bookworm
ARG PYTHON=3.11

FROM rust:${RUST}-slim-${DEBIAN} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian keeps one version of each package, so an exact one would stop existing; the release is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ make python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What is downloaded changes seldom, so it comes before the sources: pinned wheels, by hash.
COPY scripts/wheels.py scripts/setup-libtorch scripts/setup-libtorch-cuda scripts/setup-minilm scripts/setup-onnxruntime scripts/
COPY scripts/requirements scripts/requirements
RUN python3 scripts/setup-libtorch && python3 scripts/setup-onnxruntime
ARG VARIANT=cpu
RUN case "${VARIANT}" in cpu) ;; cuda) python3 scripts/setup-libtorch-cuda ;; *) echo "VARIANT is cpu or cuda" >&2; exit 1 ;; esac
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY src src
RUN cargo build --release --locked --bin nereid
COPY scripts/install scripts/
RUN scripts/install target/release/nereid /opt/nereid \
 && install -D --mode=644 /etc/ssl/certs/ca-certificates.crt /opt/certificates/ca-certificates.crt

FROM build AS models
RUN python3 scripts/setup-minilm
COPY scripts/prepare-minilm scripts/
COPY scripts/torchscript scripts/torchscript
COPY model_repository model_repository
RUN scripts/prepare-minilm target/release/nereid

FROM python:${PYTHON}-slim-${DEBIAN} AS client
WORKDIR /client
COPY scripts/requirements/clients.txt scripts/requirements/
RUN pip install --no-cache-dir --no-deps --only-binary=:all: --require-hashes --requirement scripts/requirements/clients.txt
COPY --from=models /src/third_party/minilm/tokenizer.json third_party/minilm/
COPY examples/embed.py examples/
USER 10001:10001
ENTRYPOINT ["python", "examples/embed.py"]

FROM debian:${DEBIAN}-slim AS server
LABEL org.opencontainers.image.title="Nereid" \
      org.opencontainers.image.description="A multi-model inference server, compatible with Triton's protocol" \
      org.opencontainers.image.licenses="Apache-2.0"
# libtorch needs the C++ runtime, which the base has for apt; this says so, and fails if it should ever not.
RUN test -e /usr/lib/x86_64-linux-gnu/libstdc++.so.6 \
 && groupadd --gid 10001 nereid \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin nereid \
 && mkdir /models /var/cache/nereid \
 && chown 10001:10001 /var/cache/nereid
COPY --from=build /opt/nereid /opt/nereid
# Object stores are reached in TLS.
COPY --from=build /opt/certificates/ca-certificates.crt /etc/ssl/certs/
# The user has no home that a cache could be in. The NVIDIA runtime gives a container its devices by these; without it they mean nothing.
ENV PATH=/opt/nereid/bin:${PATH} \
    XDG_CACHE_HOME=/var/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Not whether it is ready: who restarts what is not healthy must not do so because a model loads slowly, or is broken.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["nereid", "health", "--live"]
ENTRYPOINT ["nereid"]
CMD ["serve", "--model-repository", "/models"]

FROM server AS example
COPY --from=models --chown=root:root /src/model_repository /models

# The last stage is what `docker build .` makes.
FROM server
