"""The daemon's limit of open files."""

import subprocess
import sys

import pytest

_ASK = """
import resource
from tunnel.net.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, 512))
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("soft", [128, 512])
def test_it_is_raised_to_what_the_system_allows(soft: int) -> None:
    said = subprocess.check_output([sys.executable, "-c", _ASK.format(soft=soft)], text=True, timeout=60)
    assert said.split() == ["512"] * 3
