ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir --root-user-action=ignore -r requirements.txt

# .dockerignore lets nothing else through than what is needed here
COPY docker-entrypoint.sh *.py ./
COPY repository ./repository/
COPY server ./server/
COPY inspection ./inspection/
COPY folders ./folders/
COPY hub ./hub/
COPY resumption ./resumption/
COPY openapi ./openapi/
COPY page ./page/

# Readable by every user, whatever the umask was where this was checked out; a named volume takes its owner from here
RUN chmod -R a+rX /app && mkdir models && chown 10001:10001 models

ARG VERSION=1.0.0 REVISION=unknown
LABEL org.opencontainers.image.title="AI Model Repository Server" \
      org.opencontainers.image.description="Stores AI models over HTTP and gives them back" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="python:3.13-slim"

VOLUME /app/models
EXPOSE 8000
STOPSIGNAL SIGTERM

# The slim image has no curl, and a Python for it every few seconds costs more than the server does when it is idle.
# A server that listens on :: alone, or on one address, is not at 127.0.0.1.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s --retries=3 CMD ["bash", "-c", \
    "for host in 127.0.0.1 ::1 $SERVER_HOST; do { exec 3<>/dev/tcp/$host/${SERVER_PORT:-8000}; } 2>/dev/null && break; done; printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && read -r -t 8 -u 3 _ status _ && [ \"$status\" = 200 ]"]

# The entrypoint drops root by itself, because only root can prepare a directory that Docker has made; hence no USER
ENTRYPOINT ["sh", "/app/docker-entrypoint.sh"]
CMD ["python", "model_server.py"]
