# Apache Airflow's own image with this project's wheel: scheduler, API server, DAG processor,
# workers, triggerer. /entrypoint, FAB, Celery and the providers are those of that image.
# docker build -f docker/airflow.Dockerfile --build-arg COMMIT=$(scripts/commit.sh) -t tuneline/airflow:local .
ARG BASE=apache/airflow:3.3.2-python3.11

FROM ${BASE} AS wheel
WORKDIR /tmp/tuneline
COPY --chown=airflow:0 pyproject.toml hatch_build.py README.md LICENSE NOTICE requirements.txt ./
COPY --chown=airflow:0 requirements ./requirements
COPY --chown=airflow:0 include ./include
# The wheel holds the commit, which lineage names; a container has no git history.
ARG COMMIT=
RUN TUNELINE_IMAGE_COMMIT=$COMMIT pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/dist .

FROM ${BASE}
USER root
# Where docker-compose.yaml keeps the kubeconfig of its pods.
RUN mkdir -p /run/tuneline && chown airflow:0 /run/tuneline
USER airflow
COPY requirements /opt/tuneline/requirements
COPY --from=wheel /tmp/dist /opt/tuneline/dist
# Airflow is named so that no package changes its version. EXTRAS names further files, such as
# requirements/openlineage.txt.
ARG EXTRAS=
RUN pip install --no-cache-dir "apache-airflow==${AIRFLOW_VERSION}" \
      "$(ls /opt/tuneline/dist/tuneline-*.whl)[airflow]" \
      ${EXTRAS:+-r /opt/tuneline/$EXTRAS} \
 && pip check
COPY dags ${AIRFLOW_HOME}/dags
COPY docker/compose/settings /opt/tuneline/settings

ARG COMMIT=
LABEL org.opencontainers.image.revision=$COMMIT
ENV TUNELINE_IMAGE_COMMIT=$COMMIT \
    TUNELINE_MODELS=/opt/tuneline/models
