"""A small Hub on the loopback device: repositories, commits, both ways to upload, and faults.

It answers what huggingface_hub asks when it creates, uploads, commits, lists and downloads, keeps
everything in memory, and writes down every request. A fault is an answer that the next matching
requests get instead of the proper one.
"""

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

#: tokens and who they are of; both belong to the organisation acme, only one may write there
WRITER, READER = "hf_writer_0123456789abcdefghij", "hf_reader_0123456789abcdefghij"
NAMES = {WRITER: "ada", READER: "bob"}
REGULAR = (".json", ".md", ".yaml", ".yml", ".txt", ".jinja", ".gitattributes")


@dataclass(frozen=True)
class File:
    """A file of a commit; a large one is known by its digest."""

    size: int
    content: bytes | None = None
    sha: str | None = None

    @property
    def oid(self) -> str:
        """The git blob's id."""
        data = self.content if self.content is not None else str(self.sha).encode()
        return sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Commit:
    """All files at one moment."""

    oid: str
    files: dict[str, File]
    message: str = ""


@dataclass
class Repo:
    """A model repository: branches of commits."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    pull_requests: int = 0

    def at(self, revision: str) -> Commit | None:
        """Return the commit that a branch or an id names."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == revision), None)


@dataclass
class Fault:
    """What happens instead to the next ``times`` requests that match ``METHOD path``.

    ``what`` is a status; ``"cut"`` closes the connection before anything happened, ``"lost"`` after
    it happened; ``"stall"`` does not answer for ``seconds``; a function is called before the proper
    answer.
    """

    pattern: str
    what: int | str | Callable[[], object]
    times: int = 1
    seconds: float = 30.0


class Hub:
    """The server; use it as a context manager."""

    def __init__(self, folder: Path, *, xet: bool = False) -> None:
        self.folder, self.xet = folder, xet
        folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.log: list[str] = []
        self.faults: list[Fault] = []
        #: answered in the place of every description of a repository
        self.odd: bytes | None = None
        #: called before a commit is made, to change something meanwhile
        self.meanwhile: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self._counter = 0
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, name: str, *, private: bool = False) -> Repo:
        """Return a repository, made if it is not there."""
        if name not in self.repos:
            self.repos[name] = Repo(private)
            self.commit(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.repos[name]

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes],
        message: str = "by hand",
        branch: str = "main",
        *,
        lfs: bool = True,
    ) -> Commit:
        """Commit files as somebody else would, large ones to LFS."""
        made = {
            path: File(len(data), data)
            if path.endswith(REGULAR) or not lfs
            else File(len(data), None, self.store(data))
            for path, data in files.items()
        }
        return self.add(self.repo(name), made, [], message, branch)

    def only(self, name: str, files: Mapping[str, bytes], *, lfs: bool = True) -> Commit:
        """Commit files to a repository that has no others."""
        made = self.commit(name, files, lfs=lfs)
        for path in set(made.files) - set(files):
            del made.files[path]
        return made

    def store(self, data: bytes) -> str:
        """Keep a large file and return its digest."""
        digest = sha256(data).hexdigest()
        self.stored[digest] = data
        return digest

    def add(
        self, repo: Repo, files: dict[str, File], gone: list[str], message: str, branch: str
    ) -> Commit:
        """Put a commit on a branch."""
        before = repo.at(branch) or repo.at("main")
        kept = {p: f for p, f in (before.files if before else {}).items() if p not in gone}
        self._counter += 1
        oid = sha1(f"{self._counter} {message}".encode()).hexdigest()
        commit = Commit(oid, {**kept, **files}, message)
        repo.branches.setdefault(branch, []).append(commit)
        return commit

    def bytes_of(self, file: File) -> bytes:
        """Return a file's content."""
        return file.content if file.content is not None else self.stored[str(file.sha)]

    def fault(self, request: str) -> Fault | None:
        """Return what is to go wrong with a request, once."""
        with self.lock:
            self.log.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, pattern: str) -> list[str]:
        """Return the requests that match."""
        return [request for request in self.log if re.search(pattern, request)]


class _Lost(Exception):
    """The connection is to be closed without an answer."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self._body = b"".join(self._chunks())
        else:
            self._body = self.rfile.read(length)
        split = urlsplit(self.path)
        self._path, self._query = unquote(split.path), parse_qs(split.query)
        fault = self.server_hub.fault(f"{self.command} {self._path}")
        try:
            if fault is not None:
                if fault.what == "stall":
                    time.sleep(fault.seconds)
                if fault.what in ("cut", "stall"):
                    raise _Lost
                if isinstance(fault.what, int):
                    return self._say(fault.what, {"error": "injected"})
                if callable(fault.what):
                    fault.what()
            with self.server_hub.lock:
                answer = self._route()
            if fault is not None and fault.what == "lost":
                raise _Lost
            answer()
        except _Lost:
            self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            pass

    do_GET = do_POST = do_PUT = do_HEAD = _any  # noqa: N815

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _say(self, status: int, data: Any, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _later(self, status: int, data: Any, **headers: str) -> Callable[[], None]:
        return lambda: self._say(status, data, **headers)

    # who asks

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _refused(
        self, repo: str | None = None, *, write: bool = False
    ) -> Callable[[], None] | None:
        if self._token is not None and self._token not in NAMES:
            return self._later(401, {"error": "Invalid username or password."})
        found = self.server_hub.repos.get(repo or "")
        hidden = found is None or (found.private and self._token is None)
        if repo is not None and hidden:
            return self._later(
                404 if self._token else 401, {"error": "Repository not found"},
                X_Error_Code="RepoNotFound", X_Error_Message="Repository not found",
            )  # fmt: skip
        if write and self._token != WRITER:
            return self._later(403, {"error": "You don't have the rights to write here"})
        return None

    # routes

    def _route(self) -> Callable[[], None]:
        for pattern, handle in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {self._path}"):
                return handle(self, *match.groups())
        return self._later(404, {"error": f"no such page {self.command} {self._path}"})

    def whoami(self) -> Callable[[], None]:
        """GET /api/whoami-v2."""
        if self._token is None:
            return self._later(401, {"error": "Invalid username or password."})
        return self._refused() or self._later(
            200,
            {
                "type": "user", "id": "1", "name": NAMES[self._token],
                "orgs": [{"type": "org", "name": "acme"}],
                "auth": {"type": "access_token", "accessToken": {"role": "write"}},
            },
        )  # fmt: skip

    def create(self) -> Callable[[], None]:
        """POST /api/repos/create."""
        said = json.loads(self._body)
        name = f"{said.get('organization') or NAMES.get(str(self._token), '')}/{said['name']}"
        if refused := self._refused():
            return refused
        if self._token is None:
            return self._later(401, {"error": "Invalid username or password."})
        if self._token != WRITER:
            return self._later(403, {"error": "You don't have the rights to create here"})
        url = f"{self.server_hub.url}/{name}"
        if name in self.server_hub.repos:
            return self._later(409, {"error": "You already created this model repo", "url": url})
        private = said.get("private", said.get("visibility") == "private")
        self.server_hub.repo(name, private=bool(private))
        return self._later(200, {"url": url, "name": name, "id": name})

    def validate(self) -> Callable[[], None]:
        """POST /api/validate-yaml."""
        return self._later(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> Callable[[], None]:
        """POST /api/models/ID/preupload/REV."""
        found = self.server_hub.repos.get(repo)
        commit = found.at(revision) if found else None
        files = [
            {
                "path": file["path"], "shouldIgnore": False,
                "uploadMode": "regular" if file["path"].endswith(REGULAR) else "lfs",
                "oid": commit.files[file["path"]].oid
                if commit and file["path"] in commit.files else None,
            }
            for file in json.loads(self._body)["files"]
        ]  # fmt: skip
        return self._refused(repo, write=True) or self._later(200, {"files": files})

    def batch(self, repo: str) -> Callable[[], None]:
        """POST /ID.git/info/lfs/objects/batch."""
        said = json.loads(self._body)
        if refused := self._refused(repo, write=True):
            return refused
        xet = self.server_hub.xet and "xet" in said["transfers"]
        objects = []
        for asked in said["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server_hub.stored and not xet:
                href = f"{self.server_hub.url}/lfs/{asked['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        return self._later(200, {"transfer": "xet" if xet else "basic", "objects": objects})

    def put(self, oid: str) -> Callable[[], None]:
        """PUT /lfs/OID."""
        if self.server_hub.store(self._body) != oid:
            return self._later(400, {"error": "other content"})
        return self._later(200, b"")

    def xet(self, repo: str, kind: str, revision: str) -> Callable[[], None]:
        """GET /api/models/ID/xet-KIND-token/REV."""
        where = f"local://{self.server_hub.folder}"
        token = {"accessToken": "x", "exp": int(time.time()) + 3600, "casUrl": where}
        return self._refused(repo, write=kind == "write") or self._later(
            200, token, X_Xet_Cas_Url=where, X_Xet_Access_Token="x",
            X_Xet_Token_Expiration=str(token["exp"]),
        )  # fmt: skip

    def commit(self, repo: str, branch: str) -> Callable[[], None]:
        """POST /api/models/ID/commit/BRANCH."""
        if refused := self._refused(repo, write=True):
            return refused
        if self.server_hub.meanwhile is not None:
            meanwhile, self.server_hub.meanwhile = self.server_hub.meanwhile, None
            meanwhile()
        found = self.server_hub.repos[repo]
        lines = [json.loads(line) for line in self._body.splitlines()]
        head = found.at(branch)
        if head is None:
            return self._later(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        parent = lines[0]["value"].get("parentCommit")
        if parent and head.oid != parent:
            return self._later(412, {"error": "A commit has happened since"})
        files, gone = {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = File(len(data), data)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server_hub.stored and not self.server_hub.xet:
                    return self._later(400, {"error": "the object was never uploaded"})
                files[value["path"]] = File(value.get("size", 0), None, value["oid"])
            elif line["key"] == "deletedFile":
                gone.append(value["path"])
        url = None
        if self._query.get("create_pr"):
            found.pull_requests += 1
            branch = f"refs/pr/{found.pull_requests}"
            url = f"{self.server_hub.url}/{repo}/discussions/{found.pull_requests}"
        made = self.server_hub.add(found, files, gone, lines[0]["value"]["summary"], branch)
        place = f"{self.server_hub.url}/{repo}/commit/{made.oid}"
        return self._later(
            200, {"success": True, "commitOid": made.oid, "commitUrl": place, "pullRequestUrl": url}
        )

    def _commit(self, repo: str, revision: str) -> tuple[Commit | None, Callable[[], None]]:
        refused = self._refused(repo)
        if refused:
            return None, refused
        found = self.server_hub.repos[repo].at(revision)
        missing = self._later(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return found, missing

    def info(self, repo: str, revision: str | None = None) -> Callable[[], None]:
        """GET /api/models/ID[/revision/REV]."""
        if self.server_hub.odd is not None:
            return self._later(200, self.server_hub.odd)
        commit, refused = self._commit(repo, revision or "main")
        if commit is None:
            return refused
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.oid}
            | ({"lfs": {"sha256": file.sha, "size": file.size, "pointerSize": 134}}
               if file.sha else {})
            for path, file in sorted(commit.files.items())
        ]  # fmt: skip
        private = self.server_hub.repos[repo].private
        return self._later(
            200,
            {
                "_id": "1", "id": repo, "modelId": repo, "sha": commit.oid, "private": private,
                "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
            },
        )  # fmt: skip

    def tree(self, repo: str, revision: str) -> Callable[[], None]:
        """GET /api/models/ID/tree/REV."""
        commit, refused = self._commit(repo, revision)
        if commit is None:
            return refused
        entries = [
            {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            | ({"lfs": {"oid": file.sha, "size": file.size, "pointerSize": 134}}
               if file.sha else {})
            for path, file in sorted(commit.files.items())
        ]  # fmt: skip
        return self._later(200, entries)

    def refs(self, repo: str) -> Callable[[], None]:
        """GET /api/models/ID/refs."""
        found = self._refused(repo)
        if found:
            return found
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
            for name, commits in self.server_hub.repos[repo].branches.items()
        ]
        return self._later(200, {"branches": branches, "converts": [], "tags": []})

    def branch(self, repo: str, name: str) -> Callable[[], None]:
        """POST /api/models/ID/branch/NAME."""
        if refused := self._refused(repo, write=True):
            return refused
        found = self.server_hub.repos[repo]
        if name in found.branches:
            return self._later(409, {"error": "Reference already exists"})
        found.branches[name] = [found.branches["main"][-1]]
        return self._later(200, {})

    def resolve(self, repo: str, revision: str, path: str) -> Callable[[], None]:
        """HEAD or GET /ID/resolve/REV/FILE."""
        commit, refused = self._commit(repo, revision)
        if commit is None:
            return refused
        file = commit.files.get(path)
        if file is None:
            return self._later(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        tag = file.sha or file.oid
        with contextlib.suppress(KeyError):
            data = self.server_hub.bytes_of(file)
            size = str(len(data))
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                part = data[int(wanted[1]) : int(wanted[2]) + 1]
                self.server_hub.log[-1] += f" {len(part)} bytes"
                return self._later(206, part, X_Repo_Commit=commit.oid, ETag=f'"{tag}"')
            return self._later(
                200, data, X_Repo_Commit=commit.oid, ETag=f'"{tag}"', Content_Length=size,
                X_Linked_Size=size, X_Linked_Etag=f'"{tag}"',
            )  # fmt: skip
        return self._later(404, {"error": "stored elsewhere"}, X_Error_Code="EntryNotFound")


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, Callable[..., Callable[[], None]]]] = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_ID}/preupload/(.+)", _Handler.preupload),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(\w+)", _Handler.put),
    (rf"GET /api/models/{_ID}/xet-(write|read)-token/(.+)", _Handler.xet),
    (rf"POST /api/models/{_ID}/commit/(.+)", _Handler.commit),
    (rf"POST /api/models/{_ID}/branch/(.+)", _Handler.branch),
    (rf"GET /api/models/{_ID}/refs", _Handler.refs),
    (rf"GET /api/models/{_ID}/tree/(.+)", _Handler.tree),
    (rf"GET /api/models/{_ID}/revision/(.+)", _Handler.info),
    (rf"GET /api/models/{_ID}", _Handler.info),
    (rf"(?:GET|HEAD) /{_ID}/resolve/(.+?)/(.+)", _Handler.resolve),
]


def surroundings(hub: Hub, folder: Path) -> dict[str, str]:
    """Return environment variables under which the client talks to the loopback Hub."""
    return {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": WRITER,
        "HF_XET_CACHE": str(folder / "xet-cache"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_XET_TELEMETRY_ENABLED": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "0",
        "OMNIREG_HUB_TIMEOUT": "5",
    }  # fmt: skip


def connected(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, *, xet: bool
) -> Iterator[Hub]:
    """Have this process talk to a loopback Hub."""
    for name, value in surroundings(hub, folder).items():
        monkeypatch.setenv(name, value)
    # read when the client was imported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http._retry_wait", 0, raising=False)
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
