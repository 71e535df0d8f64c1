import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# importlib mode leaves test folders off it
sys.path[:0] = [str(HERE), str(HERE / "any_model"), str(HERE.parent / "models")]

from recompute_settings import SETTINGS  # noqa: E402


@pytest.fixture(params=SETTINGS)
def setting(request):
    """Every recompute setting in turn."""
    return SETTINGS[request.param]
