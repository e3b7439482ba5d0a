# The cloud service. Build it in the root of the repository, for processors or for NVIDIA GPUs:
#   docker build -f docker/cloud.Dockerfile --target cpu  -t chaperone-cloud:0.1.0 .
#   docker build -f docker/cloud.Dockerfile --target cuda -t chaperone-cloud:0.1.0-cuda .
# docker/README.md explains the arguments, and how to run the image with a read-only root.

# The wheel of this checkout, made by the pinned build backend.
FROM python:3.11.15-slim-bookworm AS wheel
WORKDIR /src
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir -c constraints.txt hatchling
COPY LICENSE README.md pyproject.toml ./
COPY configs ./configs
COPY common/chaperone_common ./common/chaperone_common
COPY edge_client ./edge_client
COPY cloud_supervisor ./cloud_supervisor
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.11.15-slim-bookworm AS base
RUN python -m venv /opt/chaperone
WORKDIR /src
COPY constraints.txt ./

# torch alone is a layer of its own: it is the largest, and rarely changes. TORCH_INDEX is a package index with torch for
# processors only. Without it the default index serves a build with the CUDA libraries, which works and is 4 GB larger.
FROM base AS libraries-cpu
ARG TORCH_INDEX=""
RUN /opt/chaperone/bin/python -m pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
ARG EXTRAS="cloud,build"
COPY --from=wheel /wheels /wheels
RUN /opt/chaperone/bin/python -m pip install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[$EXTRAS]"

FROM base AS libraries-cuda
RUN /opt/chaperone/bin/python -m pip install --no-cache-dir -c constraints.txt torch
ARG EXTRAS="cloud,build"
COPY --from=wheel /wheels /wheels
RUN /opt/chaperone/bin/python -m pip install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[$EXTRAS]"

# "base", not "runtime": the wheels of torch bring cuBLAS, cuDNN and NCCL of the versions that torch was built with. The
# image adds the check of the driver's version. Its Python is another one, so ours comes with its standard library.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS cuda
# No versions: Ubuntu deletes the older of two builds, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libbz2-1.0 libffi8 libsqlite3-0 libssl3t64 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=base /usr/local /usr/local
RUN ldconfig \
 && python3.11 -c "import bz2, ctypes, lzma, sqlite3, ssl, zlib" \
 && groupadd --gid 10001 chaperone \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/chaperone --shell /usr/sbin/nologin chaperone \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/chaperone
COPY --from=libraries-cuda /opt/chaperone /opt/chaperone
ENV PATH=/opt/chaperone/bin:/usr/local/bin:/usr/bin:/bin \
    CHAPERONE_HOME=/var/lib/chaperone \
    XDG_CACHE_HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/chaperone
EXPOSE 50151 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["chaperone-cloud"]
CMD ["serve", "--config", "/etc/chaperone/cloud.yaml"]

# The last target is what `docker build` makes without --target.
FROM python:3.11.15-slim-bookworm AS cpu
RUN groupadd --gid 10001 chaperone \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/chaperone --shell /usr/sbin/nologin chaperone \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/chaperone
COPY --from=libraries-cpu /opt/chaperone /opt/chaperone
ENV PATH=/opt/chaperone/bin:/usr/local/bin:/usr/bin:/bin \
    CHAPERONE_HOME=/var/lib/chaperone \
    XDG_CACHE_HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/chaperone
EXPOSE 50151 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["chaperone-cloud"]
CMD ["serve", "--config", "/etc/chaperone/cloud.yaml"]
