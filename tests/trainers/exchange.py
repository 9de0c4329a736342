"""Samples that the tests hand to the scripts of this folder, and the rewards that the scripts hand back.

Imports only the standard library and Pillow, so that every trainer's environment can run it.
"""

import base64
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

END_OF_TURN = "<|im_end|>"
"""Last token of an answer of the embedded policy."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a question about an image."""

    image: str
    """Path of an image file."""
    question: str
    response: str

    @property
    def data_url(self) -> str:
        """The image as a data URL."""
        return "data:image/png;base64," + base64.b64encode(Path(self.image).read_bytes()).decode()

    @property
    def label(self) -> str:
        """Question and image as a label of the data set."""
        return json.dumps({"question": self.question, "image": self.data_url})

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt in OpenAI's form."""
        parts = [{"type": "image_url", "image_url": {"url": self.data_url}}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]

    def open_image(self) -> Image.Image:
        """Return the pixels."""
        with Image.open(self.image) as image:
            return image.convert("RGB")


@dataclass(frozen=True, slots=True)
class Request:
    """Content of a test's request."""

    model: str
    """Folder of the policy, for its tokenizer and processor."""
    samples: list[Sample]
    empty: Sample
    """A sample whose response is empty: it has no reward."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rewards that the trainer's code has for the samples of a request, and its behaviour without a reward."""

    rewards: list[float]
    missing: str
    """Name of the exception and its message, or the value that the trainer takes as the reward."""


def respond(version: str, run: Callable[[Request], Mapping[str, Outcome]]) -> None:
    """Read the request, run the trainer's code, and write its version and one outcome per entrance."""
    read, written = map(Path, sys.argv[1:])
    fields = json.loads(read.read_text())
    request = Request(fields["model"], [Sample(**row) for row in fields["samples"]], Sample(**fields["empty"]))
    outcomes = {
        name: {"rewards": [float(reward) for reward in outcome.rewards], "missing": outcome.missing}
        for name, outcome in run(request).items()
    }
    written.write_text(json.dumps({"version": version, "outcomes": outcomes}))


def outcome_of(call: Callable[[], object]) -> str:
    """Return what a call returns or raises, as text."""
    try:
        return repr(call())
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
