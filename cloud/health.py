"""``python -m cloud.health <url>``: status 0 when a GET of the URL is answered with 200, for containers' health checks.

The image holds neither curl nor a shell's worth of tools; this starts in a tenth of a second.
"""

import sys
import urllib.error
import urllib.request
from contextlib import closing

TIMEOUT_SECONDS = 4.0


def healthy(url: str) -> bool:
    """Whether a GET of an http URL answers 200 within ``TIMEOUT_SECONDS``."""
    if not url.startswith("http://"):
        return False
    try:
        with closing(urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)) as answer:  # noqa: S310 - http only, see above
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if len(sys.argv) > 1 and healthy(sys.argv[1]) else 1)
