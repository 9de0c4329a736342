"""Schemas: how the rows of a data set become questions. The protocol, the table, and the detection by columns.

A schema states how well it fits the columns of a sample, and why (`match`), and reads one row (`questions`). Detection
takes the schema with the highest score; the recipe's `schema` or `columns` override it. To add a schema, write a class
with these two methods in a file of `schemas/` and add a line to `SCHEMAS`, or name it in a recipe as
`schema: package.module:Name`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vlgenrm_ray import plugins
from vlgenrm_ray.curation.sources.rows import (
    Columns,
    RowContent,
    RowFields,
    SourceRow,
    build_row,
    check_texts,
    problem_row,
)
from vlgenrm_ray.curation.sources.values import MalformedRowError, is_missing, show
from vlgenrm_ray.errors import DropReason

AUTO = "auto"
COLUMNS = "columns"
_PACKAGE = "vlgenrm_ray.curation.sources.schemas"
SCHEMAS = {
    "alpaca": f"{_PACKAGE}.alpaca:Alpaca",
    COLUMNS: f"{_PACKAGE}.columns:UsualColumns",
    "hallusionbench": f"{_PACKAGE}.hallusionbench:HallusionBenchRows",
    "labelled": f"{_PACKAGE}.labelled:LabelledQuestion",
    "llava": f"{_PACKAGE}.llava:LlavaConversations",
    "llava_critic": f"{_PACKAGE}.llava_critic:LlavaCritic",
    "llava_rlhf": f"{_PACKAGE}.llava_rlhf:LlavaRlhf",
    "messages": f"{_PACKAGE}.messages:ChatMessages",
    "mm_rlhf": f"{_PACKAGE}.mm_rlhf:MmRlhf",
    "mmhal": f"{_PACKAGE}.mmhal:MmHalRows",
    "model_answers": f"{_PACKAGE}.model_answers:ModelAnswers",
    "ms_swift": f"{_PACKAGE}.ms_swift:MsSwiftPairs",
    "multimodal_rewardbench": f"{_PACKAGE}.multimodal_rewardbench:MultimodalRewardBenchRows",
    "openai_preference": f"{_PACKAGE}.openai_preference:OpenAiPreference",
    "pairs": f"{_PACKAGE}.pairs:TextPairs",
    "pope": f"{_PACKAGE}.pope:PopeQuestions",
    "povid": f"{_PACKAGE}.povid:Povid",
    "ranked": f"{_PACKAGE}.ranked:RankedResponses",
    "rlaif_v": f"{_PACKAGE}.rlaif_v:RlaifV",
    "rlhf_v": f"{_PACKAGE}.rlhf_v:RlhfV",
    "sharegpt_preference": f"{_PACKAGE}.sharegpt_preference:ShareGptPreference",
    "trl": f"{_PACKAGE}.trl:TrlPreference",
    "vlfeedback": f"{_PACKAGE}.vlfeedback:VlFeedback",
    "vlrmbench": f"{_PACKAGE}.vlrmbench:VlrmBenchRows",
}
"""Schema -> import path of its class."""


@dataclass(frozen=True, slots=True)
class SchemaMatch:
    """Degree to which a schema fits a sample."""

    score: int
    """1 to 100. About 90: columns that only this data set has; 70: a usual form; 10: any question."""
    reason: str
    """Which columns or values made it fit, for `vlgenrm inspect`."""


class Schema(Protocol):
    """Reader of the rows of one data set, or of one form that several have."""

    title: ClassVar[str]
    """Names of the data sets or tools that write this form."""

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """Return how well the schema fits, or None if it does not.

        Args:
            columns: All columns of the sample.
            sample: The first rows; each may lack some columns.
        """
        ...

    def questions(self, fields: RowFields) -> Iterable[RowContent]:
        """Read the questions of one row, most often one.

        Raises:
            MalformedRowError: The row is no question of this form.
        """
        ...


def load_schema(name: str) -> Schema:
    """Return the schema of a name in `SCHEMAS` or of an import path. Raises ConfigError if it cannot be imported."""
    schema: Schema = plugins.load(name, SCHEMAS, "pool.schema")()
    return schema


def rank_schemas(sample: Sequence[Mapping[str, Any]]) -> list[tuple[str, SchemaMatch]]:
    """Return the schemas that fit a sample, the best first."""
    columns = frozenset(name for row in sample for name in row if isinstance(name, str) and not is_missing(row[name]))
    matches = []
    for name in SCHEMAS:
        try:
            match = load_schema(name).match(columns, sample)
        # A sample may hold values that a schema did not foresee; it then does not fit.
        except Exception:
            match = None
        if match is not None:
            matches.append((name, match))
    return sorted(matches, key=lambda match: -match[1].score)


@dataclass(frozen=True)
class RowReader:
    """Reads rows by one schema. Pickled to the tasks that read the files."""

    schema: str
    """Name in `SCHEMAS`, or an import path."""
    columns: Columns
    image_folder: str | None = None
    """Folder of relative image paths; None: the folder of the data file."""

    def read(self, row: object, *, id: str, folder: str, roles: dict[str, set[str]] | None = None) -> list[SourceRow]:
        """Read the questions of a row, at least one. A malformed row has a `problem`; nothing is raised.

        Args:
            row: A mapping of column names to values, or anything else, which is malformed. An exception is the reason
                why the row could not be read.
            id: Name of the row in the source. Further questions of the row have the names `<id>.2`, `<id>.3`, ...
            folder: Folder or URI of the data file.
            roles: Receives the columns that were used, by role.
        """
        try:
            return list(self._questions(row, id, self.image_folder or folder, roles))
        # A row may be wrong in ways that nobody foresaw, such as values nested too deep; it must not end the run.
        except Exception as error:
            return [problem_row(error, id)]

    def _questions(self, row: object, id: str, folder: str, roles: dict[str, set[str]] | None) -> Iterator[SourceRow]:
        if isinstance(row, Exception):
            raise row
        if not isinstance(row, Mapping):
            raise MalformedRowError(f"a row must be an object with named columns, not {show(row)}")
        fields = RowFields(row, self.columns.overrides())
        try:
            contents = list(load_schema(self.schema).questions(fields))
            for content in contents[:1]:
                _refuse_video(fields, content)
        finally:
            if roles is not None:
                for role, names in fields.roles.items():
                    roles.setdefault(role, set()).update(names)
        if not contents:
            raise MalformedRowError("no question")
        for number, content in enumerate(contents, start=1):
            name = id if number == 1 else f"{id}.{number}"
            try:
                built = build_row(content, id=name, folder=folder, by_name=self.image_folder is not None)
                check_texts(built)
                yield built
            except Exception as error:
                yield problem_row(error, name)


def _refuse_video(fields: RowFields, content: RowContent) -> None:
    has_image = content.images or any(turn.images for turn in content.turns)
    names = [n for n in ("video", "videos", "video_path") if fields.row.get(n)]
    fields.note("video", *names)
    if not has_image and (name := next(iter(names), None)):
        raise MalformedRowError(f"{name}: only still images are supported; extract frames as images", DropReason.VIDEO)
