# The ML environment: every step of a run, the llama.cpp engine, the gateway.
# docker build -f docker/ml.Dockerfile --build-arg COMMIT=$(scripts/commit.sh) -t tuneline/ml:local .
FROM python:3.11-slim

RUN useradd --create-home --uid 50000 tuneline \
 && apt-get update \
 && apt-get install -y --no-install-recommends git libgomp1 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tuneline
COPY requirements ./requirements
# EXTRAS names further files, such as requirements/signing.txt.
ARG EXTRAS=
RUN pip install --no-cache-dir -r requirements/ml.txt -r requirements/pods.txt \
      ${EXTRAS:+-r $EXTRAS} -c requirements/ml.constraints.txt

COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY include ./include
COPY config ./config
RUN pip install --no-cache-dir --no-deps -e .

ARG COMMIT=
LABEL org.opencontainers.image.revision=$COMMIT
# Threads that spin while they wait slow everything else on the machine tenfold.
ENV TUNELINE_IMAGE_COMMIT=$COMMIT \
    OMP_WAIT_POLICY=PASSIVE \
    TUNELINE_CACHE=/var/cache/tuneline
RUN mkdir -p /var/cache/tuneline /var/lib/tuneline/bases /run/tuneline \
 && chown -R tuneline /var/cache/tuneline /var/lib/tuneline /run/tuneline
# As a number, by which a cluster sees that it is not root. Pods may write below /tmp,
# /home/tuneline and /var/cache/tuneline alone.
USER 50000
ENTRYPOINT []
CMD ["tuneline", "--help"]
