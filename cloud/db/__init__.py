"""Django's PostgreSQL backend with deadlines on the client's side, a bounded pool and a circuit breaker.

PostgreSQL's own timeouts never fire on a server that is frozen or cut off, so each wait is bounded here (data.md, "When
a part is down"): a call that gets no answer fails within `VISIONA_DB_DEADLINE_SECONDS`, and the calls of the next
second fail at once. A server that is alive but slow cancels by itself just before that, and is not taken for dead.

It knows Django and psycopg, and neither HTTP nor the apps.
"""
