# An example client: numpy, grpcio and protobuf, no torch. Build from the repository root:
#   docker build -f deploy/docker/client.Dockerfile -t carv-client:0.1.0 .
# The base is pinned by an exact tag, Python packages by deploy/docker/constraints.txt.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/carv
COPY deploy/docker/constraints.txt pyproject.toml README.md LICENSE ./
COPY proto proto
COPY client client
COPY server server
RUN /opt/carv/bin/pip install --constraint constraints.txt .

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="carv-client" \
    org.opencontainers.image.description="CARV example client" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/carv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin carv
COPY --from=build /opt/carv /opt/carv
COPY examples/pipelined.py /opt/carv/example.py
USER 10001
# It runs to its end and is no server: there is nothing to probe.
HEALTHCHECK NONE
ENTRYPOINT ["python", "/opt/carv/example.py"]
CMD ["server:50051"]
