"""A stand-in for the Hugging Face hub: an HTTP server on this machine, in front of which huggingface_hub works."""

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub.constants as constants
import huggingface_hub.utils

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by name: file name -> bytes. `fetched` lists what was downloaded, `answer` is a refusal for all."""

    def __init__(self):
        self.repositories, self.fetched, self.answer = {}, [], None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, name, folder, *, without=(), **more):
        """A repository of a folder's files; `more` are further files."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
        self.repositories[name] = {n: c for n, c in files.items() if n not in without} | more

    def refuse(self, status, code="", message=""):
        """Every request is answered by this."""
        self.answer = (status, {"X-Error-Code": code, "X-Error-Message": message})

    def _handler(hub):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, body, status=200, **headers):
                self.send_response(status)
                for key, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(key.replace("_", "-"), str(value))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_GET(self):
                path = unquote(self.path.partition("?")[0])
                if hub.answer:
                    status, headers = hub.answer
                    return self.reply(b"{}", status, **headers)
                api = path.startswith("/api/models/")
                parts = path.removeprefix("/api/models/").strip("/").split("/")
                files = hub.repositories.get("/".join(parts[:2]))
                if files is None:
                    return self.reply(b"{}", 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                if parts[2:3] in (["revision"], ["tree"], ["resolve"]) and parts[3] not in ("main", COMMIT):
                    return self.reply(b"{}", 404, X_Error_Code="RevisionNotFound")
                if api and parts[2:3] == ["tree"]:
                    tree = [{"type": "file", "path": n, "size": len(c), "oid": _tag(c)} for n, c in files.items()]
                    return self.reply(json.dumps(tree).encode(), Content_Type="application/json")
                if api:
                    siblings = [{"rfilename": n, "size": len(c), "blobId": _tag(c)} for n, c in files.items()]
                    info = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings, "private": False}
                    return self.reply(json.dumps(info).encode(), Content_Type="application/json")
                name = "/".join(parts[4:])
                if name not in files:
                    return self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                if self.command == "GET":
                    hub.fetched.append(name)
                return self.reply(files[name], ETag=f'"{_tag(files[name])}"', X_Repo_Commit=COMMIT)

            do_HEAD = do_GET

        return Handler


def _tag(content):
    return hashlib.sha1(content).hexdigest()


@contextlib.contextmanager
def served(monkeypatch, cache):
    """The hub of this process, with a cache of its own and nobody logged in."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    assert template.endswith("/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path(cache) / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.utils.disable_progress_bars()
    try:
        yield hub
    finally:
        huggingface_hub.utils.enable_progress_bars()
        hub.server.shutdown()
        hub.server.server_close()
