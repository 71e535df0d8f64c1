"""A stand-in for the server of Weights & Biases: it answers what the SDK asks and keeps what it is given."""

import gzip
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789" * 4


def project(name):
    """A project as the server's answers describe one."""
    names = {"__typename": "Project", "id": "UA==", "name": name, "entityName": "someone"}
    return {**names, "createdAt": "2026-11-25T12:00:00", "isBenchmark": False, "user": None}


class StandInServer(BaseHTTPRequestHandler):
    """Keeps the history rows of runs, the views that are saved, and the projects that are made."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        request = json.loads(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
        history = request.get("files", {}).get("wandb-history.jsonl", {"content": []})
        self.server.history += [json.loads(line) for line in history["content"]]
        answer = json.dumps({"data": self.answer(request.get("query", ""), request.get("variables", {}))}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, query, variables):
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        match name[1].lower() if name else "":
            case "viewer" | "getdefaultentity":
                names = {"entity": "someone", "username": "someone", "email": None}
                return {"viewer": {"id": "VQ==", "flags": "{}", "teams": {"edges": []}, **names}}
            case "getprojects":
                edges = [{"node": project(name)} for name in self.server.projects]
                page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
                return {"models": {"pageInfo": page, "edges": edges}}
            case "createproject":
                self.server.projects.append(variables["input"]["name"])
                made = project(self.server.projects[-1])
                return {"result": {"project": made, "model": made, "inserted": True}}
            case "upsertview" | "upsertview2" if variables["projectName"] in self.server.projects:
                return {"upsertView": {"view": self.save_view(variables), "inserted": True}}
            case "runresumestatus":
                return {"model": {**project(variables["project"]), "entity": {"name": "someone"}, "bucket": self.run()}}
            case "createrunfiles":
                return {"createRunFiles": {"runID": "QQ==", "uploadHeaders": [], "files": []}}
        if "UpsertBucket" in query:
            owner = {"id": "UA==", "name": variables["project"], "entity": {"id": "RQ==", "name": "someone"}}
            bucket = {"id": "QQ==", "name": variables["name"], "displayName": "x", "project": owner}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        return {}

    def run(self):
        """The run that the history is of, as who resumes it asks for it; None where there is none yet."""
        if not self.server.history:
            return None
        counts = {"historyLineCount": len(self.server.history), "eventsLineCount": 0, "logLineCount": 0}
        last = json.dumps(self.server.history[-1])
        tails = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last}
        facts = {"id": "QQ==", "name": "x", "displayName": "x", "config": "{}", "tags": [], "notes": None}
        return {**counts, **tails, **facts, "wandbConfig": json.dumps({"t": 1})}

    def save_view(self, variables):
        self.server.views.append(variables)
        owner = {"id": "UA==", "name": variables["projectName"], "entityName": variables["entityName"]}
        fields = {key: variables.get(key, "") for key in ("type", "name", "displayName", "description", "spec")}
        return {"id": f"VIEW{len(self.server.views)}", "project": owner, "updatedAt": "2026-11-25T12:00:00", **fields}

    def log_message(self, *_):
        """Keeps the test's output clean."""


@contextmanager
def stand_in_server():
    """A running server; its lists hold what came in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandInServer)
    server.history, server.views, server.projects = [], [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
