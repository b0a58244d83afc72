"""Which build this is: the release, and the commit and time that the image's build wrote into its environment."""

import os
from typing import Final

VERSION: Final = "0.1.0"
COMMIT: Final = os.environ.get("BUILD_COMMIT", "")
BUILT_AT: Final = os.environ.get("BUILD_TIME", "")
