"""The catalogue of messages: `make messages` brings it up to the source, `--check` says what it lacks.

Both files of a catalogue are kept in the repository, so that no machine needs a compiler of catalogues to run.
"""

import io
import sys
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
PO = ROOT / "cloud" / "locale" / "zh_Hant" / "LC_MESSAGES" / "django.po"
MO = PO.with_suffix(".mo")
MARKS: dict[str, tuple[int, ...] | None] = {"_": None, "gettext": None, "gettext_lazy": None, "ngettext": (1, 2)}

# What the REST framework says and its own catalogue lacks, as far as our fields can say it.
LIBRARY = (
    "Must be a valid boolean.",
    "Not a valid string.",
    "This value does not match the required pattern.",
    "Must be a valid UUID.",
    "A valid biginteger is required.",
    "Datetime has wrong format. Use one of these formats instead: {format}.",
    'Invalid datetime for the timezone "{timezone}".',
    "Datetime value out of range.",
    "Date has wrong format. Use one of these formats instead: {format}.",
    "Ensure this field has at least {min_length} elements.",
    "Ensure this field has no more than {max_length} elements.",
    'Expected a dictionary of items but got type "{input_type}".',
    "This dictionary may not be empty.",
    "Surrogate characters are not allowed: U+{code_point:X}.",
)


def template() -> Catalog:
    """Every message that the source marks."""
    found = Catalog(charset="utf-8")
    for folder in ("apps", "cloud"):
        hits = extract_from_dir(ROOT / folder, [("**.py", "python")], keywords=MARKS)
        for name, _line, message, comments, _context in sorted(hits, key=lambda hit: (hit[0], hit[1])):
            found.add(message, locations=[(f"{folder}/{name}", 0)], auto_comments=comments)
    for text in LIBRARY:
        found.add(text, locations=[("rest_framework", 0)])
    return found


def catalogue() -> Catalog:
    """What is translated so far."""
    with PO.open("rb") as file:
        return read_po(file, locale="zh_Hant")


def compiled(of: Catalog) -> bytes:
    """The bytes of the compiled catalogue."""
    out = io.BytesIO()
    write_mo(out, of)
    return out.getvalue()


def _compiled_catalogue() -> Catalog:
    with MO.open("rb") as file:
        return read_mo(file)


def _texts(of: Catalog) -> dict[str, object]:
    """What a catalogue says for each message: two versions of Babel write other bytes for the same."""
    return {str(message.id): message.string for message in of if message.id}


def faults() -> list[str]:
    """What is missing, left over or not compiled, a line each."""
    wanted, there = template(), catalogue()
    lines = [f"not translated: {m.id}" for m in wanted if m.id and (m.id not in there or not there[m.id].string)]
    lines += [f"no longer in the source: {m.id}" for m in there if m.id and m.id not in wanted]
    lines += [f"{m.id}: {fault}" for m in there for fault in m.check(there)]
    if _texts(_compiled_catalogue()) != _texts(read_mo(io.BytesIO(compiled(there)))):
        lines.append(f"{MO.name} is not what {PO.name} compiles to: make messages")
    return lines


def update() -> None:
    """Bring the catalogue up to the source, without guesses, and compile it."""
    there = catalogue()
    there.update(template(), no_fuzzy_matching=True, update_creation_date=False)
    there.obsolete.clear()
    with PO.open("wb") as file:
        write_po(file, there, width=0, omit_header=False, sort_by_file=True, include_lineno=False)
    MO.write_bytes(compiled(catalogue()))


if __name__ == "__main__":
    if "--check" not in sys.argv:
        update()
    missing = faults()
    sys.stdout.write("\n".join(missing) + "\n" if missing else "complete\n")
    sys.exit(bool(missing))
