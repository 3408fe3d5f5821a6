"""What a source of records says when it refuses."""

from collections.abc import Callable

import pytest

from plinius.data.records import Source
from plinius.errors import SourceError


def refusal(make: Callable[[], Source]) -> str:
    with pytest.raises(SourceError) as caught:
        list(make())
    return str(caught.value)
