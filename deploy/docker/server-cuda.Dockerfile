# The CARV server on NVIDIA GPUs. Build from the repository root:
#   docker build -f deploy/docker/server-cuda.Dockerfile -t carv:0.1.0-cuda .
# torch's wheels bring the CUDA libraries; the host brings the driver (NVIDIA container toolkit).
# The base is pinned by an exact tag, Python packages by deploy/docker/constraints.txt.

FROM python:3.11.14-slim-bookworm AS build
# Where torch comes from. Empty: wherever pip is set up to look.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
# "ray,tracing" for an image that can be a node of a Ray cluster and its client.
ARG EXTRAS=server,tracing
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/carv
# torch first, in a layer of its own: it is large and changes only with the constraints.
COPY deploy/docker/constraints.txt ./
RUN /opt/carv/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
RUN /opt/carv/bin/pip install --constraint constraints.txt ".[$EXTRAS]"

FROM python:3.11.14-slim-bookworm AS run
LABEL org.opencontainers.image.title="carv" \
    org.opencontainers.image.description="CARV teacher server, CUDA" \
    org.opencontainers.image.licenses="Apache-2.0"
# HF_HUB_OFFLINE: models come from mounted folders, never from a hub.
# HOME: the root is read-only and the user has no home; /tmp is the one writable folder.
# NVIDIA_*: what the container toolkit hands in; no graphics, no video.
ENV PATH=/opt/carv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 HOME=/tmp CARV_CONFIG=/etc/carv/carv.toml \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin carv
COPY --from=build /opt/carv /opt/carv
COPY deploy/docker/healthcheck.py /opt/carv/healthcheck.py
# Mount another file over it, or name another folder's in CARV_CONFIG.
COPY deploy/docker/carv.toml /etc/carv/carv.toml
USER 10001
# gRPC; health for probes, always plaintext; metrics.
EXPOSE 50051 50052 9464
STOPSIGNAL SIGTERM
# Loading, compiling and warming a large teacher takes minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "/opt/carv/healthcheck.py", "127.0.0.1:50052"]
# Exec form: the server is process 1 and gets SIGTERM, on which it drains.
ENTRYPOINT ["carv"]
CMD ["serve"]

# With a C compiler, which torch.compile (Triton) needs when it runs: --target compile
FROM run AS compile
USER 0
# The version follows the base image's Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001

# What is built when no target is named.
FROM run AS server
