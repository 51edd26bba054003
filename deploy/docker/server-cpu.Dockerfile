# The CARV server on CPUs. Build from the repository root:
#   docker build -f deploy/docker/server-cpu.Dockerfile -t carv:0.1.0-cpu .
# The base is pinned by an exact tag, Python packages by deploy/docker/constraints.txt.

FROM python:3.11.14-slim-bookworm AS build
# Where torch comes from: CPU wheels. Empty: wherever pip is set up to look.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
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

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="carv" \
    org.opencontainers.image.description="CARV teacher server, CPU" \
    org.opencontainers.image.licenses="Apache-2.0"
# HF_HUB_OFFLINE: models come from mounted folders, never from a hub.
# HOME: the root is read-only and the user has no home; /tmp is the one writable folder.
ENV PATH=/opt/carv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 HOME=/tmp CARV_CONFIG=/etc/carv/carv.toml
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin carv
COPY --from=build /opt/carv /opt/carv
COPY deploy/docker/healthcheck.py /opt/carv/healthcheck.py
# Mount another file over it, or name another folder's in CARV_CONFIG.
COPY deploy/docker/carv.toml /etc/carv/carv.toml
USER 10001
# gRPC; health for probes, always plaintext; metrics.
EXPOSE 50051 50052 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "/opt/carv/healthcheck.py", "127.0.0.1:50052"]
# Exec form: the server is process 1 and gets SIGTERM, on which it drains.
ENTRYPOINT ["carv"]
CMD ["serve"]
