"""Chat messages without a pair: OpenAI messages with `image_url` parts, LLaMA-Factory and ms-swift `messages` with
`<image>` placeholders, and messages in JSON as in LMM-R1 and R1-Reward. A last answer becomes the reference."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import is_turns, parse_turns, reference_text, split_answer
from vlgenrm_ray.curation.sources.rows import (
    ID_NAMES,
    KIND_NAMES,
    REFERENCE_NAMES,
    RowContent,
    RowFields,
    is_desirable,
    take_images,
)
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text

_NAMES = ("messages", "message")


class ChatMessages:
    """`messages`, with images as parts of the turns or in the columns `images` or `image`."""

    title = "chat messages (OpenAI, LLaMA-Factory, ms-swift, LMM-R1)"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        name = next((n for n in _NAMES if any(is_turns(row.get(n)) for row in sample)), None)
        if name is None:
            return None
        where = "images" if columns & {"images", "image"} else "the turns"
        return SchemaMatch(80, f"{name} are chat turns, with the images in {where}")

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        name = next((n for n in _NAMES if n in fields), "messages")
        system = parse_turns(fields.take("question", "system") or None, "system", role="system")
        turns, answer = split_answer((*system, *parse_turns(fields.take("question", name), name)))
        images = take_images(fields)
        if not images and any(turn.images for turn in turns):
            fields.note("image", name)
        names = REFERENCE_NAMES if answer is None else tuple(n for n in REFERENCE_NAMES if n not in ("label", "answer"))
        reference = reference_text(fields.take("reference", *names), "reference")
        if not is_desirable(fields, answer):
            answer = None
        if answer is not None:
            fields.note("reference", name)
        yield RowContent(
            turns=turns,
            images=images,
            id=fields.take("id", *ID_NAMES),
            kind=to_text(fields.take("kind", *KIND_NAMES) or "", "kind"),
            reference=answer if reference is None else reference,
        )
