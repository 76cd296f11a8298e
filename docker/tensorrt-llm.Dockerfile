# The image that builds and serves TensorRT-LLM engines. It needs an NVIDIA GPU to run, and
# starts from NVIDIA's own image: tensorrt-llm pins versions that fit nobody else.
# docker build -f docker/tensorrt-llm.Dockerfile --build-arg COMMIT=$(git rev-parse HEAD) -t tuneline/tensorrt-llm:local .
ARG TENSORRT_LLM=1.2.1
FROM nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM}

WORKDIR /opt/tuneline
# What the steps themselves need besides; tensorrt-llm's own pins stay as they are.
RUN pip install --no-cache-dir boto3 pydantic PyYAML jsonschema pyarrow httpx psutil rich
COPY requirements ./requirements
COPY pyproject.toml README.md LICENSE ./
COPY include ./include
COPY config ./config
RUN pip install --no-cache-dir --no-deps -e .

ARG COMMIT=
ENV TUNELINE_IMAGE_COMMIT=$COMMIT
# The user and the folders that pods run with, as in ml.Dockerfile.
ENV TUNELINE_CACHE=/var/cache/tuneline
RUN useradd --create-home --uid 50000 tuneline \
 && mkdir -p /var/cache/tuneline /var/lib/tuneline/bases \
 && chown -R tuneline /var/cache/tuneline /var/lib/tuneline
USER 50000
CMD ["tuneline", "--help"]
