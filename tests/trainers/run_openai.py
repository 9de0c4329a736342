"""OpenAI's client against `/v1/chat/completions`."""

# /// script
# dependencies = ["openai==3.57.0"]
# ///

import os
from importlib.metadata import version

from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from openai import OpenAI


def run(request: Request) -> dict[str, Outcome]:
    """Have one conversation per sample judged."""
    client = OpenAI(base_url=os.environ["VLGENRM_URL"] + "/v1", api_key=os.environ["VLGENRM_TOKEN"])
    rewards = [judge(client, sample) for sample in request.samples]
    return {"/v1/chat/completions": Outcome(rewards, outcome_of(lambda: judge(client, request.empty)))}


def judge(client: OpenAI, sample: Sample) -> float:
    """Return the reward that comes with the critiques."""
    answer = {"role": "assistant", "content": sample.response + END_OF_TURN}
    completion = client.chat.completions.create(model="judge", messages=[*sample.messages, answer])
    assert all(choice.message.content for choice in completion.choices)
    return completion.reward


if __name__ == "__main__":
    respond(version("openai"), run)
