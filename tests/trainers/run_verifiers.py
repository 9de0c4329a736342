"""verifiers: `vf-eval` with the reward as its flag names it.

The policy is an OpenAI-compatible server that answers with the sample's response. Rollouts, scoring and traces are
those of verifiers.
"""

# /// script
# dependencies = ["verifiers==0.4.0", "uv==0.13.9", "pyarrow>=20", "pillow>=11", "pyyaml", "typer>=0.20"]
#
# [tool.vlgenrm]
# alone = true
# ///

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

from exchange import END_OF_TURN, Outcome, Request, respond
from shapes_tasks import REQUEST_VARIABLE
from verifiers.v1.cli.eval import main as vf_eval

TRACES = Path("outputs/eval/traces.jsonl")


def run(request: Request) -> dict[str, Outcome]:
    """Evaluate the scripted policy and read the rewards of its traces."""
    responses = [sample.response for sample in [*request.samples, request.empty]]
    server = ThreadingHTTPServer(("127.0.0.1", 0), policy(responses))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[REQUEST_VARIABLE] = sys.argv[1]
    os.environ["POLICY_KEY"] = "any"
    vf_eval.main(
        [
            *("shapes_tasks", "--env.taskset.task.rewards.vlgenrm.fn", "vlgenrm_ray.adapters.verifiers.reward"),
            *("--env.agent.harness.id", "null", "--env.agent.runtime.type", "subprocess"),
            *("--model", "scripted", "--client.api-key-var", "POLICY_KEY"),
            *("--client.base-url", f"http://127.0.0.1:{server.server_port}/v1"),
            *("--run.name", "eval", "--no-push", "--no-rich"),
        ]
    )
    server.shutdown()
    traces = [trace for line in TRACES.read_text().splitlines() for trace in json.loads(line)["traces"]]
    traces.sort(key=lambda trace: trace["task"]["data"]["idx"])
    *scored, last = traces
    failures = [describe(error) for trace in scored for error in trace["errors"]]
    assert not failures, failures
    rewards = [trace["rewards"]["vlgenrm"]["score"] for trace in scored]
    return {"reward": Outcome(rewards, " ".join(map(describe, last["errors"])))}


def describe(error: dict[str, str]) -> str:
    """Return an error of a trace as text."""
    return f"{error['type']}: {error['message']}"


def policy(responses: list[str]) -> type[BaseHTTPRequestHandler]:
    """Return the handler of a server that answers with the response whose number the system prompt states."""

    class Handler(BaseHTTPRequestHandler):
        """Chat completions from a list."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answer one request, as a stream of one chunk."""
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = next(message["content"] for message in body["messages"] if message["role"] == "system")
            delta = {"role": "assistant", "content": responses[int(number)] + END_OF_TURN}
            chunk = {
                "id": "completion",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
            answer = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Write no access log."""

    return Handler


if __name__ == "__main__":
    respond(version("verifiers"), run)
