# The service alone: its stores are named by REDIS_URL and DATABASE_URL (see docker-compose.yml).

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY orchestra ./orchestra
COPY sim ./sim
COPY chaos ./chaos
COPY loadtests ./loadtests
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /app orchestra
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORCHESTRA_HOST=0.0.0.0 \
    ORCHESTRA_PORT=8000 \
    ORCHESTRA_LOG_FORMAT=json
USER orchestra
WORKDIR /app
EXPOSE 8000
# alive, not ready: a container is not restarted because a store is away
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["orchestra", "serve"]
