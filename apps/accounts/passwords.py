"""Which passwords are taken: what the schema can say, so that a front end can say it too."""

import functools
import gzip
import re
from pathlib import Path
from typing import Final

from django.contrib.auth import password_validation

MIN_LENGTH: Final = 8
PATTERN: Final = r"^(?!(.)\1*$)[^\u0000]*$"
"""One character, however often, is none."""
MAX_LENGTH: Final = 128
"""Long enough for any pass phrase; bounds what is hashed."""

COMMON: Final = (
    "********", "**********", "00000000", "000000000", "0000000000", "000000000000", "111111111", "1111111111",
    "11111111111", "111111111111", "111111111111111", "22222222", "222222222", "2222222222", "33333333", "333333333",
    "3333333333", "44444444", "4444444444", "55555555", "555555555", "5555555555", "66666666", "666666666",
    "6666666666", "77777777", "777777777", "7777777777", "8888888888", "99999999", "999999999", "9999999999",
    "????????", "?????????", "??????????", "aaaaaaaaa", "aaaaaaaaaa", "bbbbbbbb", "dddddddd", "dddddddddd",
    "ffffffff", "ffffffffff", "gggggggg", "gggggggggg", "hhhhhhhh", "jjjjjjjj", "jjjjjjjjjj", "kkkkkkkk",
    "kkkkkkkkkk", "llllllll", "mmmmmmmm", "mmmmmmmmmm", "oooooooo", "pppppppp", "qqqqqqqq", "qqqqqqqqqq",
    "ssssssss", "ssssssssss", "wwwwwwww", "xxxxxxxx", "xxxxxxxxxx", "zzzzzzzz", "zzzzzzzzzz",
    "11111111", "12341234", "12345678", "123456789", "1234567890", "123123123", "1q2w3e4r", "1qaz2wsx",
    "87654321", "88888888", "987654321", "aaaaaaaa", "abc12345", "abcd1234", "admin123", "administrator", "asdfghjkl",
    "baseball", "changeme", "computer", "football", "iloveyou", "internet", "jennifer", "letmein1", "liverpool",
    "michelle", "p@ssw0rd", "passw0rd", "password", "password1", "password12", "password123", "princess", "q1w2e3r4",
    "qwer1234", "qwerty12", "qwerty123", "qwertyui", "qwertyuiop", "starwars", "sunshine", "superman", "trustno1",
    "visiona1", "welcome1", "whatever", "zaq12wsx", "zxcvbnm1",
)  # fmt: skip
"""The most used ones of 8 characters or more in published leaks; they stand in the schema as `not: enum`, which cannot
hold all that are refused."""


@functools.cache
def commonest() -> frozenset[str]:
    """The 20 000 most used passwords, in lower case (Django's list), and those above."""
    source = Path(password_validation.__file__).with_name("common-passwords.txt.gz")
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        return frozenset(line.strip() for line in lines) | frozenset(COMMON)


def is_too_common(text: str) -> bool:
    """Whether everybody who guesses tries it soon: one of the commonest in any case, blanks, or one character alone."""
    return not text.strip() or not re.search(PATTERN, text) or text.casefold() in commonest()
