"""A scripted server of /v1/chat/completions for SOTOPIA's partner and judge, and a small data folder."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCORES = {
    "believability": 9, "relationship": 2, "knowledge": 3, "secret": 0, "social_rules": -1,
    "financial_and_material_benefits": 1, "goal": 8,
}  # fmt: skip


def speaks(words: str, kind: str = "speak") -> str:
    return json.dumps({"action_type": kind, "argument": words})


def judges(goals=(8, 4), order=("agent_1", "agent_2")) -> str:
    goal = dict(zip(("agent_1", "agent_2"), goals))
    scores = {agent: {**SCORES, "goal": goal[agent]} for agent in order}
    rated = {agent: {name: ["because", score] for name, score in found.items()} for agent, found in scores.items()}
    return json.dumps({"evaluations": rated})


class Stub:
    """A scripted server. `partner` and `judge` are an answer, a list of answers (the last one repeats), or a function of the prompt.

    An answer is the model's text, an int for an HTTP status, bytes to send unchanged, or None to send nothing for a while.
    """

    def __init__(self):
        self.partner, self.judge, self.asked, self.keys, self.models = speaks("Fine."), judges(), [], [], []
        self.closed, stub = threading.Event(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                role = "judge" if "evaluate how well participants" in prompt else "partner"
                stub.asked.append((role, prompt))
                stub.keys.append(self.headers.get("Authorization"))
                stub.models.append((body["model"], body["temperature"]))
                answer = getattr(stub, role)
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                answer = answer(prompt) if callable(answer) else answer
                if answer is None:
                    stub.closed.wait(5)
                    return
                if isinstance(answer, int):
                    self.send_error(answer)
                    return
                if isinstance(answer, str):
                    answer = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def count(self, role: str) -> int:
        return sum(asked == role for asked, _ in self.asked)


@contextlib.contextmanager
def serving():
    stub = Stub()
    thread = threading.Thread(target=stub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.closed.set()
        stub.server.shutdown()
        stub.server.server_close()
        thread.join()


def write_data(folder, scenarios: int = 10):
    """Writes a folder in the benchmark's layout: invented scenarios, each with one pairing of the same two characters."""
    envs = {
        f"E{index}": {
            "pk": f"E{index}", "codename": "fence", "source": "test",
            "scenario": f"Two neighbours talk about fence number {index}.",
            "agent_goals": ["Have the fence painted red", "Have the fence painted blue"], "relationship": 2,
            "age_constraint": "[(18, 70), (18, 70)]", "occupation_constraint": None, "agent_constraint": None,
        }
        for index in range(scenarios)
    }  # fmt: skip
    people = (("A1", "Mina", "likes red", "owes money"), ("A2", "Otto", "likes blue", "has no brush"))
    agents = {
        key: {
            "pk": key, "first_name": name, "last_name": "Stone", "age": 40, "occupation": "Baker", "gender": "Woman",
            "gender_pronoun": "She/her", "public_info": info, "big_five": "", "moral_values": [], "schwartz_personal_values": [],
            "personality_and_values": "calm", "decision_making_style": "", "secret": secret, "model_id": "", "mbti": "",
        }
        for key, name, info, secret in people
    }  # fmt: skip
    combos = [{"pk": f"C{key}", "env_id": key, "agent_ids": ["A1", "A2"]} for key in envs]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("envs", envs), ("agents", agents), ("env_agent_combos", combos)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
