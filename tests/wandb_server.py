"""What W&B's server answers, as far as runs need it, on loopback. It keeps what it is sent."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """
    A server for a test: ``with WandbServer() as server``.

    :param status: answer everything with this HTTP status instead
    :param stall: take requests and never answer
    """

    def __init__(self, status: int = 200, stall: bool = False) -> None:
        self.status, self.stall = status, stall
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.config: dict[str, Any] = {}
        self.exit_codes: list[int] = []
        self.operations: list[str] = []
        self.artifacts: list[dict[str, Any]] = []
        # by the run's id, the JSON of its rows in the order of their places in the run, as they are given out again
        self.runs: dict[str, list[str]] = {}
        self.requests = 0
        self._closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.die()

    def die(self) -> None:
        """From now on connections are refused."""
        if not self._closed.is_set():
            self._closed.set()
            self._http.shutdown()
            self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    body = b"".join(parts)
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

            def _handle(self) -> None:
                body = self._body()
                server.requests += 1
                if server.stall:
                    server._closed.wait()
                if server.stall or server._closed.is_set():
                    self.close_connection = True
                    return
                answer = server.answer(self.command, self.path, body) if server.status == 200 else {"errors": ["refused"]}
                data = json.dumps(answer).encode()
                self.send_response(server.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            return self._graphql(json.loads(body))
        if path.endswith("/file_stream"):
            self._file_stream(path.split("/")[-2], json.loads(body))
            return {"limits": {}}
        if method == "PUT":
            self.files[path.removeprefix("/upload/")] = body
        return {}

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        operation = request.get("operationName") or query.split("(")[0].split("{")[0].split()[-1]
        self.operations.append(operation)
        if "viewer" in query and "Viewer" in operation:
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer}}
        if operation == "UpsertBucket":
            if variables.get("config"):
                self.config |= json.loads(variables["config"])
            project = {"name": variables.get("project") or "p", "entity": {"name": "me"}}
            bucket = {
                "id": "bucket", "name": variables.get("name") or "run", "displayName": "run", "description": None,
                "config": variables.get("config"), "sweepName": None, "project": {**project, "id": "2"}, "historyLineCount": 0,
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if operation == "ArtifactType":
            return {"data": {"project": {"artifact": None}}}
        if operation == "RunResumeStatus":
            rows = self.runs.get(variables["name"])
            bucket = rows and {
                "id": "bucket", "name": variables["name"], "displayName": "run", "config": json.dumps(self.config),
                "summaryMetrics": rows[-1], "historyTail": json.dumps(rows[-1:]), "historyLineCount": len(rows),
                "eventsTail": "[]", "eventsLineCount": 0, "logLineCount": 0, "tags": [], "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"data": {"model": {"id": "2", "name": "p", "entity": {"id": "3", "name": "me"}, "bucket": bucket}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
        if operation == "CreateArtifact":
            self.artifacts.append(variables.get("input") or variables)
            sequence = {"id": "4", "latestArtifact": None}
            made = {"id": f"artifact{len(self.artifacts)}", "state": "PENDING", "artifactSequence": sequence}
            return {"data": {"createArtifact": {"artifact": made}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            upload = {"uploadUrl": f"{self.url}/upload/manifest", "uploadHeaders": []}
            file = {"id": "5", "name": "wandb_manifest.json", "displayName": "m", **upload}
            key = operation[0].lower() + operation[1:]
            return {"data": {key: {"artifactManifest": {"id": "6", "file": file}}}}
        if operation == "CreateArtifactFiles":
            specs = variables.get("input", variables).get("artifactFiles") or variables.get("artifactFiles") or []
            edges = [
                {
                    "node": {
                        "id": spec["name"], "name": spec["name"], "displayName": spec["name"], "storagePath": None,
                        "uploadUrl": f"{self.url}/upload/artifact/{spec['name']}", "uploadHeaders": [],
                        "uploadMultipartUrls": None, "artifact": {"id": "artifact"},
                    }
                }
                for spec in specs
            ]  # fmt: skip
            return {"data": {"createArtifactFiles": {"files": {"edges": edges}}}}
        if operation == "CommitArtifact":
            return {"data": {"commitArtifact": {"artifact": {"id": "artifact", "digest": "d"}}}}
        return {"data": {}}

    def _file_stream(self, run_id: str, sent: dict[str, Any]) -> None:
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                self.rows += [json.loads(line) for line in chunk["content"]]
                self.runs.setdefault(run_id, [])[chunk["offset"] :] = chunk["content"]
        if sent.get("complete"):
            self.exit_codes.append(sent.get("exitcode", 0))

    def wait_for(self, condition: Any, timeout: float = 20.0) -> bool:
        deadline = time.monotonic() + timeout
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(condition())
