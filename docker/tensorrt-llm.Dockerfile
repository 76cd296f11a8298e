# The image that builds and serves TensorRT-LLM engines. It needs an NVIDIA GPU to run, and
# starts from NVIDIA's own image: tensorrt-llm pins versions that fit nobody else.
# docker build -f docker/tensorrt-llm.Dockerfile --build-arg COMMIT=$(scripts/commit.sh) -t tuneline/tensorrt-llm:local .
ARG TENSORRT_LLM=1.2.1
FROM nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM}

# The steps run in an environment of their own, the same as in ml.Dockerfile: TensorRT-LLM 1.2
# pins transformers 4, they need 5. NVIDIA's Python stays as it is and stays first on PATH, and the
# steps call its programs: python, trtllm-build, trtllm-serve. Its images hold pip to versions of
# their own by PIP_CONSTRAINT.
WORKDIR /opt/tuneline
COPY requirements ./requirements
RUN python3 -m venv --without-pip /opt/tuneline/venv \
 && env -u PIP_CONSTRAINT python3 -m pip --python /opt/tuneline/venv install --no-cache-dir \
      -r requirements/ml.txt -r requirements/pods.txt -c requirements/ml.constraints.txt
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY include ./include
COPY config ./config
RUN env -u PIP_CONSTRAINT python3 -m pip --python /opt/tuneline/venv install --no-cache-dir \
      --no-deps -e . \
 && ln -s /opt/tuneline/venv/bin/tuneline /usr/local/bin/tuneline

ARG COMMIT=
LABEL org.opencontainers.image.revision=$COMMIT
# Threads that spin while they wait slow everything else on the machine tenfold.
ENV TUNELINE_IMAGE_COMMIT=$COMMIT \
    OMP_WAIT_POLICY=PASSIVE \
    TUNELINE_CACHE=/var/cache/tuneline
# The user and the folders that pods run with, as in ml.Dockerfile.
RUN useradd --create-home --uid 50000 tuneline \
 && mkdir -p /var/cache/tuneline /var/lib/tuneline/bases \
 && chown -R tuneline /var/cache/tuneline /var/lib/tuneline
USER 50000
CMD ["tuneline", "--help"]
