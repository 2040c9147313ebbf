# quaver serve on a CPU. Build: docker build -t quaver .   Run: see compose.yaml and docs/serving.md.
FROM python:3.11-slim

# The volumes take the owner of these folders: keys and voices are written by the server's own user.
RUN useradd --create-home --uid 1000 quaver && install -d -o 1000 -g 1000 -m 700 /keys /voices
WORKDIR /srv/quaver
COPY . .
# constraints.txt pins torch and torchaudio to one matching pair.
RUN pip install --no-cache-dir -c constraints.txt ".[serve]"

USER 1000
ENV OMP_NUM_THREADS=1 \
    QUAVER_HOST=0.0.0.0 \
    QUAVER_PORT=8600 \
    QUAVER_KEYS=/keys/keys.json \
    QUAVER_VOICES=/voices
EXPOSE 8600
VOLUME ["/keys", "/voices"]
# Without a key in /keys the server refuses to start: it binds to every address of the container.
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8600/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["quaver", "serve"]
