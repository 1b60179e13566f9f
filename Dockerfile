# The default model is baked in: a container needs no network, starts with a read-only root, and
# two containers of one image serve the same weights. It costs 270 MB beside torch.
#
# On Linux, PyPI's torch brings CUDA along. For a small image without it, build with
# --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels>; see docs/operations.md.

FROM python:3.11-slim-bookworm AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/foreword/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=DL3013 -- every version is pinned in constraints.txt
RUN python -m venv /opt/foreword/venv \
    && pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY prefix_store prefix_store
COPY clients/console clients/console
COPY clients/python clients/python
RUN pip install --constraint constraints.txt '.[postgres,s3]' ./clients/python \
    && FOREWORD_CACHE=/opt/foreword/cache python -m server.default_model

FROM python:3.11-slim-bookworm
# The engine compiles its layers for the processor it starts on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home --home-dir /data foreword \
    && install --directory --owner=10001 --group=foreword --mode=0750 /data
COPY --from=build /opt/foreword /opt/foreword
COPY docker/healthcheck.py /opt/foreword/healthcheck.py
ENV PATH=/opt/foreword/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    FOREWORD_HOST=0.0.0.0 \
    FOREWORD_STORE=/data/store \
    FOREWORD_CACHE=/opt/foreword/cache
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-I", "/opt/foreword/healthcheck.py"]
ENTRYPOINT ["foreword", "serve"]
