# The device: no torch, no transformers. Build it in the root of the repository:
#   docker build -f docker/edge.Dockerfile -t chaperone:0.1.0 .

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

FROM python:3.11.15-slim-bookworm AS libraries
RUN python -m venv /opt/chaperone
WORKDIR /src
COPY constraints.txt ./
ARG EXTRAS="edge"
COPY --from=wheel /wheels /wheels
RUN /opt/chaperone/bin/python -m pip install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[$EXTRAS]"

FROM python:3.11.15-slim-bookworm AS device
RUN groupadd --gid 10001 chaperone \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/chaperone --shell /usr/sbin/nologin chaperone \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/chaperone
COPY --from=libraries /opt/chaperone /opt/chaperone
ENV PATH=/opt/chaperone/bin:/usr/local/bin:/usr/bin:/bin \
    CHAPERONE_HOME=/var/lib/chaperone \
    XDG_CACHE_HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/chaperone
# A command that ends by itself has no health to ask about.
HEALTHCHECK NONE
ENTRYPOINT ["chaperone"]
CMD ["--help"]
