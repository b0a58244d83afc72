"""The few tests that failed among all others, once more and by themselves.

The suite starts hundreds of processes on as few as two cores, and a test that is one among six thousand may meet a
machine that ran none of its processes for seconds. Alone it meets a quiet one: what fails here too is broken. What
passes is named in the last lines, and is a fault of the test or a race of the product all the same: with CI=true the
suite fails of it.

Usage: again.py CACHE STATUS, with the folder of pytest's cache and the status that it ended with.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

AT_MOST = 3
"""More than these are no accident."""
TESTS_FAILED = 1  # pytest's own status; others are a suite that did not run to its end


def say(what: str, tests: list[str]) -> None:
    """A heading, and a line a test."""
    sys.stdout.write("\n  ".join([what, *tests]) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the status that the suite ends with."""
    cache, status = Path(sys.argv[1]), int(sys.argv[2])
    try:
        failed = sorted(json.loads((cache / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        failed = []
    if status != TESTS_FAILED or not 0 < len(failed) <= AT_MOST:
        return status
    say(f"{len(failed)} failed among the others; once more, by themselves:", failed)
    again = subprocess.run([sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *failed], check=False)
    if again.returncode == 0:
        say("FLAKY, passed only by themselves:", failed)
        return status if os.environ.get("CI") == "true" else 0
    return again.returncode


if __name__ == "__main__":
    raise SystemExit(main())
