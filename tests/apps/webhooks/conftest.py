import pytest
from django.db import connection


@pytest.fixture(autouse=True)
def no_jobs(request: pytest.FixtureRequest) -> None:
    """No job of an earlier test is there: those with real transactions leave theirs, as nothing flushes the table."""
    if "db" in request.fixturenames:
        request.getfixturevalue("db")
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM procrastinate_jobs")
