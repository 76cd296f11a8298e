# The image of the steps that start vLLM on NVIDIA GPUs, and of the engine itself. It starts from
# vLLM's own image, whose torch, CUDA and kernels stay as they are.
# docker build -f docker/vllm.Dockerfile --build-arg COMMIT=$(scripts/commit.sh) -t tuneline/vllm:local .
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

USER root
WORKDIR /opt/tuneline
ENV PIP_BREAK_SYSTEM_PACKAGES=1
COPY requirements ./requirements
# Everything that vLLM's image holds is a constraint, but for transformers, of which llm-compressor
# takes none as new.
RUN python3 -m pip freeze | grep -E '^[A-Za-z0-9._-]+==' | grep -vi '^transformers==' > /tmp/vllm.txt \
 && python3 -m pip install --no-cache-dir -r requirements/vllm.txt -c /tmp/vllm.txt \
 && python3 -m pip install --no-cache-dir --no-deps -r requirements/llm-compressor.txt \
      -c requirements/llm-compressor.constraints.txt \
      --target "$(python3 -c 'import sys; print(sys.prefix)')/llm-compressor" \
 && rm /tmp/vllm.txt

COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY include ./include
COPY config ./config
RUN python3 -m pip install --no-cache-dir --no-deps -e . \
 && ln -sf "$(command -v python3)" /usr/local/bin/python

ARG COMMIT=
LABEL org.opencontainers.image.revision=$COMMIT
# No statistics leave the pod, and no weights are looked for on a hub.
ENV TUNELINE_IMAGE_COMMIT=$COMMIT \
    OMP_WAIT_POLICY=PASSIVE \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    VLLM_CACHE_ROOT=/var/cache/tuneline/vllm \
    TUNELINE_CACHE=/var/cache/tuneline
# The user and the folders that pods run with, as in ml.Dockerfile.
RUN useradd --create-home --uid 50000 tuneline \
 && mkdir -p /var/cache/tuneline /var/lib/tuneline/bases \
 && chown -R tuneline /var/cache/tuneline /var/lib/tuneline
USER 50000
# vLLM's image starts its server; a pod names its own command.
ENTRYPOINT []
CMD ["tuneline", "--help"]
