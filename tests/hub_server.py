# SPDX-License-Identifier: Apache-2.0
"""A small Hub on this machine, for the real `huggingface_hub` client: repositories, LFS and Xet storage, commits.

Answers as https://huggingface.co/docs/hub/api, git-lfs' batch API and https://huggingface.co/docs/xet say, as far as a
push needs them, and is told to fail: with a refused token, or by cutting the connection in the middle of a request.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from xet_store import XetStore


TOKEN = "hf_goodtokengoodtokengoodtokengoodtok"
MULTIPART = 40_000
DATASET_COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the Hub's .gitattributes make LFS files; everything else of this size is a regular one.
LFS_SUFFIXES = (".safetensors", ".bin", ".pt")


class Cut(Exception):
    """The line went dead."""


class HubServer(ThreadingHTTPServer):
    """The server; `repos` holds what was pushed, `requests` what was asked.

    Attributes:
        repos (`dict[str, list[dict]]`): repository -> its commits, each with `message` and all `files` then in it.
        stored (`dict[str, bytes]`): uploaded content by sha256, in a commit or not.
        cut (`dict[str, int]`): what of `"METHOD path"` to break off (a regular expression) -> how many times.
        refuse_writes (`bool`): the token may look but not write.
        datasets (`dict[str, dict[str, bytes]]`): dataset repository -> its files, at commit `DATASET_COMMIT`.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos, self.stored, self.requests, self.cut = {}, {}, [], {}
        self.private, self.datasets = {}, {}
        self.refuse_writes = False
        self.xet = XetStore()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files at the head of a repository."""
        return self.repos[repo][-1]["files"] if self.repos[repo] else {}

    def messages(self, repo: str) -> list[str]:
        return [commit["message"] for commit in self.repos[repo]]

    def content(self, sha: str) -> bytes | None:
        return self.stored.get(sha) or self.xet.file(sha)

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _serve(self):
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            for pattern, times in self.server.cut.items():
                if times and re.fullmatch(pattern, f"{self.command} {path}"):
                    self.server.cut[pattern] = times - 1
                    # Half of what is sent is read, and nothing is answered.
                    self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                    self.close_connection = True
                    return
        self.body = self._read()
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path) if method == self.command else None
            if found:
                answer(self, **found.groupdict())
                return
        self._json({"error": f"no such endpoint: {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = _serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value, status: int = 200, headers: dict | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refused(self, repo: str | None = None) -> bool:
        """Answers for a request that this token may not make, or of a repository that is not there."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._json({"error": "Invalid credentials in Authorization header"}, 401, message)
        elif self.server.refuse_writes and self.command != "GET":
            self._json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif repo is not None and repo not in self.server.repos:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    # Repositories

    def create(self):
        if self._refused():
            return
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        answer = {"url": f"{self.server.url}/{repo}", "name": repo}
        if repo in self.server.repos:
            self._json({"error": "You already created this model repo", **answer}, 409)
            return
        self.server.repos[repo] = []
        self.server.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._json(answer)

    def info(self, repo):
        if self._refused(repo):
            return
        commits = self.server.repos[repo]
        self._json({"id": repo, "sha": commits[-1]["oid"] if commits else "0" * 40, "siblings": [], "tags": []})

    def validate(self):
        metadata = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        errors = [{"message": f"{key} is missing"} for key in ("tags", "library_name") if key not in metadata]
        for model in metadata.get("model-index", []):
            if not all({"task", "dataset", "metrics"} <= set(result) for result in model["results"]):
                errors.append({"message": "model-index: a result lacks task, dataset or metrics"})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    # A push

    def preupload(self, repo, revision):
        if self._refused(repo):
            return
        held = self.server.files(repo)
        files = []
        for file in json.loads(self.body)["files"]:
            path, lfs = file["path"], file["path"].endswith(LFS_SUFFIXES)
            about = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in held:
                git = b"blob %d\0" % len(held[path]) + held[path]
                about["oid"] = hashlib.sha256(held[path]).hexdigest() if lfs else hashlib.sha1(git).hexdigest()
            files.append(about)
        self._json({"files": files})

    def lfs_batch(self, repo):
        if self._refused(repo):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            about = {"oid": oid, "size": size}
            if oid not in self.server.stored:
                upload = {"href": f"{self.server.url}/lfs/{oid}"}
                if size > MULTIPART:
                    count = -(-size // MULTIPART)
                    parts = {f"{n:05}": f"{self.server.url}/lfs/{oid}/{n:05}" for n in range(1, count + 1)}
                    upload |= {"header": {"chunk_size": str(MULTIPART), **parts}}
                about["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/lfs-verify"}}
            objects.append(about)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._json({"error": "content does not match its hash"}, 400)
            return
        self.server.stored[oid] = self.body
        self._json({})

    def lfs_part(self, oid, part):
        self.server.stored[f"{oid}/{part}"] = self.body
        self._json({}, headers={"ETag": hashlib.md5(self.body).hexdigest()})

    def lfs_complete(self, oid):
        keys = [f"{oid}/{part['partNumber']:05}" for part in json.loads(self.body)["parts"]]
        self.body = b"".join(self.server.stored.pop(key) for key in keys)
        self.lfs_put(oid)

    def lfs_verify(self):
        asked = json.loads(self.body)
        whole = len(self.server.stored.get(asked["oid"], b"")) == asked["size"]
        self._json({} if whole else {"error": "not here"}, 200 if whole else 404)

    def commit(self, repo, revision):
        if self._refused(repo):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(self.server.files(repo))
        for line in lines[1:]:
            about = line["value"]
            if line["key"] == "file":
                files[about["path"]] = base64.b64decode(about["content"])
            elif line["key"] == "lfsFile" and self.server.content(about["oid"]) is not None:
                files[about["path"]] = self.server.content(about["oid"])
            else:
                self._json({"error": f"cannot commit {line['key']} {about}"}, 400)
                return
        oid = hashlib.sha1(self.body + str(len(self.server.repos[repo])).encode()).hexdigest()
        commit = {"message": lines[0]["value"]["summary"], "files": files, "oid": oid, "revision": revision}
        self.server.repos[repo].append(commit)
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "commitOid": oid})

    # Reading it back

    def resolve(self, repo, revision, path):
        if self._refused(repo):
            return
        self._file(self.server.files(repo).get(path), self.server.repos[repo][-1]["oid"])

    def _file(self, content: bytes | None, commit: str):
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def tree(self, repo, revision):
        if self._refused(repo):
            return
        self._json(_listed(self.server.files(repo)))

    def dataset_info(self, repo):
        if repo not in self.server.datasets:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": path} for path in self.server.datasets[repo]]
        self._json({"id": repo, "sha": DATASET_COMMIT, "siblings": siblings, "tags": []})

    def dataset_tree(self, repo):
        self._json(_listed(self.server.datasets[repo]))

    def dataset_resolve(self, repo, path):
        self._file(self.server.datasets[repo].get(path), DATASET_COMMIT)

    # Xet

    def xet_token(self, repo, revision):
        if self._refused(repo):
            return
        until = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": f"{self.server.url}/cas", "X-Xet-Access-Token": "xet"}
        body = {"casUrl": f"{self.server.url}/cas", "exp": until, "accessToken": "xet"}
        self._json(body, headers={**headers, "X-Xet-Token-Expiration": str(until)})

    def xet_chunk(self):
        self._json({"error": "unknown"}, 404)

    def xet_xorb(self, name):
        self._json({"was_inserted": self.server.xet.put_xorb(name, self.body)})

    def xet_shard(self):
        self._json({"result": self.server.xet.put_shard(self.body)})


def _listed(files: dict[str, bytes]) -> list[dict]:
    return [{"type": "file", "path": path, "size": len(c), "oid": "0" * 40} for path, c in files.items()]


_REPO = "(?P<repo>[^/]+/[^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{_REPO}", Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/[^/]+", Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    ("POST", f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", Handler.lfs_put),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)/(?P<part>[0-9]+)", Handler.lfs_part),
    ("POST", "/lfs/(?P<oid>[0-9a-f]+)", Handler.lfs_complete),
    ("POST", "/lfs-verify", Handler.lfs_verify),
    ("GET", f"/api/models/{_REPO}/xet-write-token/(?P<revision>[^/]+)", Handler.xet_token),
    ("GET", "/cas/v[0-9]/chunks/.*", Handler.xet_chunk),
    ("POST", "/cas/v[0-9]/xorbs/default/(?P<name>[0-9a-f]+)", Handler.xet_xorb),
    ("POST", "/cas/(v1/)?shards", Handler.xet_shard),
    ("GET", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.*)", Handler.resolve),
    ("HEAD", f"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.*)", Handler.resolve),
    ("GET", f"/api/datasets/{_REPO}(/revision/[^/]+)?", Handler.dataset_info),
    ("GET", f"/api/datasets/{_REPO}/tree/.*", Handler.dataset_tree),
    ("GET", f"/datasets/{_REPO}/resolve/[^/]+/(?P<path>.*)", Handler.dataset_resolve),
    ("HEAD", f"/datasets/{_REPO}/resolve/[^/]+/(?P<path>.*)", Handler.dataset_resolve),
)
