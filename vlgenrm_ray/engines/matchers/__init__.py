"""Image-text matchers: settings, the table of kinds, and loading.

To add a matcher, write a class that takes a `MatcherConfig` and satisfies `contracts.Matcher`, and add a line to
`MATCHERS`, or name the class in a recipe as `kind: package.module:Class`.
"""

from typing import Any

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.engines.contracts import Matcher
from vlgenrm_ray.engines.environment import limit_threads
from vlgenrm_ray.settings import Settings

MATCHERS = {"open_clip": "vlgenrm_ray.engines.matchers.open_clip:OpenClipMatcher"}
"""Kind -> class. Each class is constructed with a `MatcherConfig`."""


class MatcherConfig(Settings):
    """An image-text matcher and the resources it uses."""

    kind: str = "open_clip"
    """`open_clip`, or an import path `package.module:Class` of a matcher of your own."""
    model: str
    """open_clip: a folder with `open_clip_config.json` and weights, `hf-hub:<owner>/<name>`, or
    `<architecture>/<tag>`."""
    template: str = "a photo of {}"
    """Sentence that a phrase is put into ("a red cup" -> "a photo of a red cup")."""
    batch_size: int = Field(default=256, ge=1)
    """Crops per forward pass of the image tower."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` uses a GPU if there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the process."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings for a matcher of your own."""

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        return plugins.check_name(kind, MATCHERS)

    @field_validator("template")
    @classmethod
    def _has_one_placeholder(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"template: {template!r} must contain {{}} exactly once, where the phrase is inserted")
        return template

    @model_validator(mode="after")
    def _options_are_for_own_kinds(self) -> "MatcherConfig":
        if self.options and self.kind in MATCHERS:
            raise ValueError(f"'{self.kind}' has no options; remove them, or give an import path as kind")
        return self


def build_matcher(config: MatcherConfig) -> Matcher:
    """Load a matcher into this process.

    Raises:
        InputError: The model cannot be read, or the device does not exist.
        ConfigError: `kind` is an import path that cannot be imported.
    """
    limit_threads(config.threads)
    matcher: Matcher = plugins.load(config.kind, MATCHERS, "matcher.kind")(config)
    return matcher
