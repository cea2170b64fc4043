"""The middlewares under real servers. Asked for by DIAGTOOL_TEST_LIBRARIES=all: it fetches them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("DIAGTOOL_TEST_LIBRARIES") != "all", reason="DIAGTOOL_TEST_LIBRARIES=all fetches them"
    ),
    pytest.mark.timeout(600),
]

PACKAGES = ["fastapi", "uvicorn", "flask", "gunicorn"]
SOURCE = Path(__file__).parents[2] / "src"

FASTAPI = """
import asyncio, threading
from fastapi import BackgroundTasks, FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse
from diagtool.probes.asgi import LeakMiddleware
inner = FastAPI()
class Passes(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next): return await call_next(request)
inner.add_middleware(Passes)
app = LeakMiddleware(inner, grace=0)
kept = []
async def later(): await asyncio.sleep(0)
@inner.get("/healthy")
async def healthy(tasks: BackgroundTasks):
    tasks.add_task(later)
    return len(await asyncio.to_thread(open(__file__).read))
@inner.get("/sync")
def sync(): return 1
@inner.get("/stream")
async def stream():
    async def parts():
        for _ in range(3):
            await asyncio.sleep(0)
            yield b"x"
    return StreamingResponse(parts())
async def forgotten(): await asyncio.Event().wait()
@inner.get("/leak")
async def leak(): kept.append(asyncio.create_task(forgotten()))
@inner.get("/thread")
def thread(): threading.Thread(target=threading.Event().wait, daemon=True).start()
@inner.get("/told")
async def told(): return [(leak.kind, leak.where) for leak in app.leaks]
"""

FLASK = """
import threading
from flask import Flask, jsonify, stream_with_context
from diagtool.probes.wsgi import LeakMiddleware
app = Flask(__name__)
middleware = app.wsgi_app = LeakMiddleware(app.wsgi_app, grace=0)
@app.get("/healthy")
def healthy(): return open(__file__).read()
@app.get("/stream")
def stream(): return app.response_class(stream_with_context(iter(["x", "y"])))
@app.get("/thread")
def thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return ""
@app.get("/told")
def told(): return jsonify([(leak.kind, leak.where) for leak in middleware.leaks])
"""


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin/pip"), "install", "-q", *PACKAGES], check=True)
    return folder / "bin"


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        body: bytes = answer.read()
        return body


@contextmanager
def served(command: list[str], text: str, folder: Path) -> Iterator[int]:
    (folder / "served.py").write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [part.format(port=port) for part in command], cwd=folder, env=environment
    ) as server:
        try:
            for _ in range(600):
                try:
                    get(port, "/told")
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(0.1)
            yield port
        finally:
            server.terminate()


def load(port: int, path: str, count: int) -> list[list[str]]:
    """What was told after so many requests, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: get(port, path), range(count)))
    told: list[list[str]] = json.loads(get(port, "/told"))
    return told


def test_fastapi_on_uvicorn(bin: Path, tmp_path: Path) -> None:
    command = [str(bin / "uvicorn"), "served:app", "--port", "{port}", "--log-level", "warning"]
    with served(command, FASTAPI, tmp_path) as port:
        for path in ("/healthy", "/sync", "/stream"):
            assert load(port, path, 100) == [], path
        assert load(port, "/leak", 10) == [["tasks", "GET /leak"]]
        assert ["threads", "GET /thread"] in load(port, "/thread", 10)


def test_flask_on_gunicorn(bin: Path, tmp_path: Path) -> None:
    command = [str(bin / "gunicorn"), "--threads", "4", "-b", "127.0.0.1:{port}", "served:app"]
    with served(command, FLASK, tmp_path) as port:
        for path in ("/healthy", "/stream"):
            assert load(port, path, 100) == [], path
        assert load(port, "/thread", 10) == [["threads", "GET /thread"]]
