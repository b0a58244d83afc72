"""How pages (the admin) write times: short enough for a column, in order when sorted by eye, UTC as everywhere."""

DATE_FORMAT = "Y-m-d"
DATETIME_FORMAT = "Y-m-d H:i:s"
TIME_FORMAT = "H:i:s"
