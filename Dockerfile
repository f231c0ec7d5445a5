ARG BASE=python:3.13-slim
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

# .dockerignore lets nothing else through than what is needed here
COPY *.py ./

VOLUME /app/models
EXPOSE 8000
STOPSIGNAL SIGTERM

# the slim image has no curl
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + (os.environ.get('SERVER_PORT') or '8000') + '/health', timeout=8)"]

CMD ["python", "model_server.py"]
