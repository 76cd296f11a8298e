# Airflow with this project's library: scheduler, API server, DAG processor.
# docker build -f docker/airflow.Dockerfile --build-arg COMMIT=$(scripts/commit.sh) -t tuneline/airflow:local .
FROM python:3.11-slim

RUN useradd --create-home --uid 50000 airflow \
 && apt-get update \
 && apt-get install -y --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tuneline
COPY requirements.txt ./
COPY requirements ./requirements
# PostgreSQL is what the full stack keeps Airflow's metadata in; the laptop needs no driver.
# EXTRAS names further files, such as requirements/openlineage.txt.
ARG EXTRAS=
RUN pip install --no-cache-dir -r requirements.txt -r requirements/postgres.txt \
      ${EXTRAS:+-r $EXTRAS} -c requirements/airflow.constraints.txt

COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY include ./include
COPY config ./config
COPY dags ./dags
COPY docker/compose/settings ./settings
RUN pip install --no-cache-dir --no-deps -e .

# Lineage names the commit an image was built from; a container has no git history.
ARG COMMIT=
LABEL org.opencontainers.image.revision=$COMMIT
ENV TUNELINE_IMAGE_COMMIT=$COMMIT \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/tuneline/dags
RUN mkdir -p /opt/airflow /run/tuneline && chown -R airflow /opt/airflow /opt/tuneline /run/tuneline
USER airflow
CMD ["airflow", "api-server"]
