"""Loopback servers that speak the calls of the hub and of Google Drive that we use.

They are not the hub and not Drive: they answer the requests that our clients really
make over HTTP on 127.0.0.1, keep what they were given, count the bytes of it, and fail
where a test says so. `Proxy` stands before a real server, counts, and cuts or calls.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4


@dataclass
class Fault:
    """The next `times` requests of this method and path are answered with `status`.

    Status 0 cuts the connection after `keep` bytes of the body were read.
    """

    method: str
    path: str
    status: int
    times: int = 1
    keep: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _body(self, limit=None):
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        count = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(count if limit is None else min(count, limit))

    def _any(self):
        owner, url = self.server.owner, urlsplit(self.path)
        for fault in owner.faults:
            if fault.times and (fault.method, True) == (
                self.command,
                fault.path in self.path,
            ):
                fault.times -= 1
                self._body(fault.keep if fault.status == 0 else None)
                owner.failed += 1
                if fault.status:
                    return self.answer(fault.status, {"error": "as the test wished"})
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return None
        body = self._body()
        owner.requests.append((self.command, self.path, dict(self.headers)))
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        for method, pattern, action in owner.routes():
            if method == self.command and (found := re.fullmatch(pattern, url.path)):
                return action(self, body, query, *found.groups())
        return self.answer(404, {"error": f"no route {self.command} {url.path}"})

    do_GET = do_POST = do_PUT = do_PATCH = _any  # noqa: N815

    def answer(self, status, content=None, headers=None):
        data = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Loopback:
    """What the two have in common: faults, what was asked, bytes received."""

    def __init__(self):
        self.faults, self.requests = [], []
        self.failed = self.received = 0
        self.lie = False  # tell another checksum than that of the content
        self.url = ""

    @contextmanager
    def serving(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.owner = True, self
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def told(self, digest):
        return "0" * len(digest) if self.lie else digest


class HubLoopback(Loopback):
    """Speaks: create a repository, tree, preupload, LFS batch, LFS put, commit."""

    def __init__(self):
        super().__init__()
        self.repos, self.objects, self.private = {}, {}, {}
        self.commits = 0

    def routes(self):
        repo = r"/api/models/([\w.-]+/[\w.-]+)"
        return [
            ("POST", "/api/repos/create", self.create),
            ("GET", repo, self.info),
            ("GET", repo + "/tree/main", self.tree),
            ("POST", repo + "/preupload/main", self.preupload),
            ("POST", r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", "/lfs/([0-9a-f]+)", self.put),
            ("POST", repo + "/commit/main", self.commit),
            ("POST", "/api/validate-yaml", lambda r, *_: r.answer(200, {})),
        ]

    def create(self, request, body, query):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.url}/{repo}"}
        if repo in self.repos:
            return request.answer(409, {**url, "error": "exists"})
        self.repos[repo] = {}
        self.private[repo] = asked["visibility"] == "private"
        return request.answer(200, url)

    def info(self, request, body, query, repo):
        request.answer(200, {"id": repo, "private": self.private[repo]})

    def tree(self, request, body, query, repo):
        if repo not in self.repos:
            code = {"X-Error-Code": "RepoNotFound"}
            return request.answer(404, {"error": "none"}, code)
        items = []
        for path, (data, large) in self.repos[repo].items():
            sha1 = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            item = {"type": "file", "path": path, "size": len(data)}
            item["oid"] = self.told(sha1)
            if large:
                sha256 = self.told(hashlib.sha256(data).hexdigest())
                item["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 1}
            items.append(item)
        return request.answer(200, items)

    def preupload(self, request, body, query, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if ".safetensors" in file["path"] else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        request.answer(200, {"files": files})

    def batch(self, request, body, query, repo):
        found = []
        for item in json.loads(body)["objects"]:
            if item["oid"] not in self.objects:
                href = f"{self.url}/lfs/{item['oid']}"
                item = {**item, "actions": {"upload": {"href": href}}}
            found.append(item)
        request.answer(200, {"transfer": "basic", "objects": found})

    def put(self, request, body, query, oid):
        self.received += len(body)
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        request.answer(200)

    def commit(self, request, body, query, repo):
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                data = base64.b64decode(value["content"])
                self.repos[repo][value["path"]] = (data, False)
            elif step["key"] == "lfsFile":
                self.repos[repo][value["path"]] = (self.objects[value["oid"]], True)
        self.commits += 1
        answer = {"commitUrl": f"{self.url}/{repo}/commit/1", "commitOid": "1" * 40}
        request.answer(200, answer)


@dataclass
class Item:
    name: str
    parent: str
    folder: bool = False
    data: bytes = b""


@dataclass
class Session:
    item: str
    size: int
    target: Item
    data: bytearray = field(default_factory=bytearray)


class DriveLoopback(Loopback):
    """Speaks: token, list, create a folder, open a session, send and ask of it."""

    def __init__(self):
        super().__init__()
        self.items, self.sessions = {}, {}

    def routes(self):
        return [
            ("POST", "/token", self.token),
            ("GET", "/drive/v3/files", self.list),
            ("POST", "/drive/v3/files", self.folder),
            ("POST", "/upload/drive/v3/files", self.open),
            ("PATCH", "/upload/drive/v3/files/(.+)", self.reopen),
            ("PUT", "/session/(.+)", self.piece),
        ]

    def at(self, folder, path):
        """Return the items of a path such as ``run/eval/test.json``."""
        parents = [folder]
        for name in path.split("/"):
            parents = [
                key
                for key, item in self.items.items()
                if item.name == name and item.parent in parents
            ]
        return [self.items[key] for key in parents]

    def token(self, request, body, query):
        token = {"access_token": "loopback", "expires_in": 3600}
        request.answer(200, {**token, "token_type": "Bearer"})

    def list(self, request, body, query):
        parent = re.match(r"'([\w-]+)' in parents", query["q"]).group(1)
        found = []
        for key, item in self.items.items():
            if item.parent == parent:
                row = {"id": key, "name": item.name}
                if not item.folder:
                    row["size"] = str(len(item.data))
                    row["md5Checksum"] = self.told(hashlib.md5(item.data).hexdigest())
                found.append(row)
        start = int(query.get("pageToken", 0))  # three a page: paging is spoken too
        more = {"nextPageToken": str(start + 3)} if len(found) > start + 3 else {}
        request.answer(200, {"files": found[start : start + 3], **more})

    def folder(self, request, body, query):
        asked, key = json.loads(body), uuid4().hex
        self.items[key] = Item(asked["name"], asked["parents"][0], folder=True)
        request.answer(200, {"id": key})

    def _opened(self, request, key, item):
        session = uuid4().hex
        size = int(request.headers["X-Upload-Content-Length"])
        self.sessions[session] = Session(key, size, item)
        request.answer(200, None, {"Location": f"{self.url}/session/{session}"})

    def open(self, request, body, query):
        asked = json.loads(body)
        item = Item(asked["name"], asked["parents"][0])
        self._opened(request, uuid4().hex, item)

    def reopen(self, request, body, query, key):
        self._opened(request, key, self.items[key])

    def piece(self, request, body, query, key):
        if key not in self.sessions:
            return request.answer(404, {"error": "no such session"})
        session = self.sessions[key]
        told = request.headers.get("Content-Range", "")
        if found := re.match(r"bytes (\d+)-", told):
            assert int(found.group(1)) == len(session.data), "a piece is missing"
            session.data += body
            self.received += len(body)
        if len(session.data) < session.size:
            end = len(session.data) - 1
            headers = {"Range": f"bytes=0-{end}"} if session.data else {}
            return request.answer(308, None, headers)
        session.target.data = bytes(session.data)
        self.items[session.item] = session.target
        return request.answer(200, {"id": session.item})


class Proxy:
    """Stands before a server, counts bytes towards it, and acts once at a number."""

    def __init__(self, port, at=None, action=None):
        self.to, self.at, self.action = port, at, action
        self.sent = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.to))
            for one, other, counts in ((client, server, True), (server, client, False)):
                target = (one, other, counts)
                threading.Thread(target=self._pump, args=target, daemon=True).start()

    def _pump(self, one, other, counts):
        try:
            while data := one.recv(65536):
                if counts and self._count(len(data)):
                    break
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, size):
        with self.lock:
            self.sent += size
            if self.at is not None and self.sent >= self.at:
                self.at = None
                if self.action:
                    self.action()
                return True
        return False
