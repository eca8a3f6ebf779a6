# One image for every process of Millrace: `docker run millrace worker`, `beat`, `flower`, `migrate`, ...
# docker-compose.yml shows them together.
FROM python:3.13-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/millrace
COPY requirements.lock .
# The lock is the whole of it, by hashes. It holds the tools of development too: one list that is tested and shipped.
RUN /opt/millrace/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY tasks tasks
COPY workers workers
RUN /opt/millrace/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim-bookworm
RUN groupadd --system --gid 10001 millrace && useradd --system --uid 10001 --gid millrace --home-dir /var/lib/millrace --create-home millrace
COPY --from=build /opt/millrace /opt/millrace
ENV PATH=/opt/millrace/bin:$PATH \
    MILLRACE_HOME=/var/lib/millrace \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/millrace
USER millrace
# What is written when it runs: Flower's memory of tasks, and models that are fetched by name. The offline model is made
# here, so that a container may have a read-only filesystem.
RUN mkdir -m 700 flower models && python -c \
    "from pathlib import Path; from pipeline.embedding.bundled import model_directory; model_directory(Path('models'), 'float32')"
# The command replaces itself with the process that works, so SIGTERM reaches it: a worker finishes what it is doing.
STOPSIGNAL SIGTERM
ENTRYPOINT ["millrace"]
CMD ["--help"]
