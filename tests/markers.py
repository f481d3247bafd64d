"""Cases of a test that have another marker than the test itself."""

from typing import Any

import pytest


def nightly(*values: Any) -> Any:
    """Return a case that CI leaves to the nightly tests, since it takes the others of its test for all of them."""
    return pytest.param(*values, marks=pytest.mark.nightly)
