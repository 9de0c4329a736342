"""The base of configuration sections: renamed settings are read by their old names for one version."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from vlgenrm_ray.settings import Settings


class Section(Settings):
    renamed: ClassVar = {"patience": "retry"}

    retry: int = 3


def test_an_old_name_is_read_with_a_warning_that_names_the_new_one() -> None:
    with pytest.warns(FutureWarning, match="'patience' is now 'retry'"):
        assert Section.model_validate({"patience": 5}) == Section(retry=5)


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="'patience' is the old name of 'retry', and both are set"):
        Section.model_validate({"patience": 5, "retry": 4})


def test_a_present_name_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert Section.model_validate({"retry": 4}).retry == 4
    assert not recwarn.list
