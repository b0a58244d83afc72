"""Which build this is: the release, and the commit and time that the image's build wrote into its environment."""

import os
from typing import Final

from tunnel import __version__

VERSION: Final = __version__
COMMIT: Final = os.environ.get("BUILD_COMMIT", "")
BUILT_AT: Final = os.environ.get("BUILD_TIME", "")
