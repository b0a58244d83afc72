"""The schema as PostgreSQL has it (data.md, "Tables"): pinned line by line, and the same after down and up again.

`schema.txt` beside this file is what the catalogue told when it was last looked at. After a migration that is meant,
the failed test shows the difference, and `PIN_SCHEMA=1` writes the file anew.
"""

import difflib
import os
import re
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection

PINNED = Path(__file__).with_name("schema.txt")
EVENTS = "actor action address request_id detail at"
OWN = "id created_at updated_at"

PROMISED = {
    "users": f"{OWN} email email_key email_verified_at name password is_active is_staff is_superuser oidc_issuer "
    "oidc_subject locale",
    "identities": f"{OWN} user_id issuer subject email name refreshed_at",
    "users_groups": "user_id group_id",
    "devices": f"{OWN} owner_id name serial chip firmware agent_version address epoch link_status device_status "
    "metadata last_seen_at deleted_at",
    "accelerators": f"{OWN} device_id serial chip usb_id firmware status seen_at",
    "pairing_tokens": f"{OWN} token_hash owner_id name expires_at status device_id paired_at last_used_at",
    "session_tokens": f"{OWN} token_hash device_id issued_at expires_at rotated_from_id revoked_at revoke_reason",
    "models": f"{OWN} owner_id name version description format chips source status size sha256 object_key "
    "faa_object_key deleted_at",
    "deployments": f"{OWN} model_id device_id status bytes_done error_code error_message",
    "conversions": f"{OWN} model_id chip status bytes_done error",
    "clusters": f"{OWN} owner_id name",
    "cluster_members": f"{OWN} cluster_id device_id weight",
    "device_events": f"id device_id {EVENTS}",
    "audit_events": f"id object_type object_id {EVENTS}",
}
"""data.md's columns. An event is never changed, so that `at` is all its times; its object is a plain id."""

HELD = {
    "users": [
        r"UNIQUE INDEX .* \(email_key\)",
        r"UNIQUE INDEX .* \(oidc_issuer, oidc_subject\) WHERE .*oidc_subject.* = ''",
    ],
    "identities": [r"UNIQUE \(issuer, subject\)"],
    "devices": [
        r"UNIQUE INDEX .* \(owner_id, serial\) WHERE \(deleted_at IS NULL\)",
        r"CREATE INDEX .* \(owner_id, created_at\) WHERE \(deleted_at IS NULL\)",
        r"CHECK .*link_status.*'online'.*'offline'",
        r"CHECK .*device_status.*'unknown'.*'ready'.*'busy'.*'error'",
    ],
    "accelerators": [r"UNIQUE \(device_id, serial\)"],
    "pairing_tokens": [r"PRIMARY KEY \(token_hash\)", r"CHECK .*'issued'.*'paired'.*'consumed'.*'revoked'"],
    "session_tokens": [r"PRIMARY KEY \(token_hash\)"],
    "models": [
        r"UNIQUE INDEX .* \(owner_id, name, version\) WHERE \(deleted_at IS NULL\)",
        r"CREATE INDEX .* \(owner_id, created_at\) WHERE \(deleted_at IS NULL\)",
        r"USING gin \(chips\) WHERE \(deleted_at IS NULL\)",
        r"CHECK .*'pending'.*'ready'.*'failed'",
        r"CHECK .*'upload'.*'converted'.*'builtin'",
    ],
    "deployments": [r"CHECK .*'queued'.*'sending'.*'done'.*'failed'.*'cancelled'"],
    "conversions": [r"CHECK .*'queued'.*'running'.*'done'.*'failed'.*'cancelled'"],
    "clusters": [r"UNIQUE \(owner_id, name\)"],
    "cluster_members": [r"UNIQUE \(cluster_id, device_id\)"],
    "device_events": [r"BEFORE UPDATE", r"BEFORE (DELETE OR TRUNCATE|TRUNCATE OR DELETE)"],
    "audit_events": [r"BEFORE UPDATE", r"BEFORE (DELETE OR TRUNCATE|TRUNCATE OR DELETE)"],
}
"""data.md's constraints, indexes and triggers, as PostgreSQL spells them."""

_COLUMNS = """
    SELECT c.relname, a.attname || ' ' || format_type(a.atttypid, a.atttypmod) ||
        CASE WHEN a.attnotnull THEN '' ELSE ' null' END || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
        || CASE WHEN a.attidentity = '' THEN '' ELSE ' identity' END
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relname = ANY(%s) AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped"""
# Since version 18 NOT NULL is a constraint with a name too; the columns tell it already.
_CONSTRAINTS = """
    SELECT c.relname, t.conname || ' ' || pg_get_constraintdef(t.oid) FROM pg_constraint t
    JOIN pg_class c ON c.oid = t.conrelid
    WHERE c.relname = ANY(%s) AND c.relnamespace = 'public'::regnamespace AND t.contype IN ('p', 'u', 'c', 'f', 'x')"""
_INDEXES = "SELECT tablename, indexdef FROM pg_indexes WHERE tablename = ANY(%s) AND schemaname = 'public'"
_TRIGGERS = """
    SELECT c.relname, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relname = ANY(%s) AND c.relnamespace = 'public'::regnamespace AND NOT t.tgisinternal"""


def tables() -> list[str]:
    """Those of our own apps, with the ones between many and many."""
    ours = [model for model in apps.get_models(include_auto_created=True) if model.__module__.startswith("apps.")]
    return sorted({model._meta.db_table for model in ours})


def shape() -> dict[str, list[str]]:
    """Each table's columns, constraints, indexes and triggers, a line each, sorted."""
    found: dict[str, list[str]] = {}
    with connection.cursor() as cursor:
        for query in (_COLUMNS, _CONSTRAINTS, _INDEXES, _TRIGGERS):
            cursor.execute(query, [tables()])
            lines = sorted(cursor.fetchall())
            for table, line in lines:
                found.setdefault(table, []).append(line)
    return dict(sorted(found.items()))


def text(of: dict[str, list[str]]) -> str:
    return "\n".join("\n".join([table, *(f"    {line}" for line in lines)]) for table, lines in of.items()) + "\n"


def test_it_is_what_was_pinned(db):
    now = text(shape())
    if os.environ.get("PIN_SCHEMA"):
        PINNED.write_text(now)
    pinned = PINNED.read_text()
    assert now == pinned, "\n".join(difflib.unified_diff(pinned.splitlines(), now.splitlines(), lineterm=""))


@pytest.mark.parametrize("table", PROMISED)
def test_it_has_every_column_that_is_promised(db, table):
    found = {line.split()[0] for line in shape()[table]}
    assert set(PROMISED[table].split()) - found == set()


@pytest.mark.parametrize("table", HELD)
def test_it_holds_what_is_promised(db, table):
    lines = shape()[table]
    assert [rule for rule in HELD[table] if not any(re.search(rule, line) for line in lines)] == []


def test_events_point_at_nothing(db):
    """They outlive what they speak of."""
    held = [line for table in ("device_events", "audit_events") for line in shape()[table]]
    assert [line for line in held if "FOREIGN KEY" in line] == []


def test_it_needs_no_extension_and_no_id_of_the_servers(db):
    """PostgreSQL 14 serves it: no function of a newer one, nothing to be installed, ids from Python."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT extname FROM pg_extension")
        assert cursor.fetchall() == [("plpgsql",)]
    of_tables_of_many_to_many = re.compile(r"^id bigint identity$")
    made = [line for lines in shape().values() for line in lines if re.search(r" default | identity$", line)]
    # A plain value for a column that the release before, which runs beside this one, does not fill.
    plain = re.compile(r".* default (?:''::(?:character varying|text)|0)$")
    assert [line for line in made if not of_tables_of_many_to_many.match(line) and not plain.match(line)] == []


@pytest.mark.django_db(transaction=True)
def test_down_and_up_again_it_is_the_same():
    before = shape()
    try:
        for app in ("accounts", "audit"):  # all others stand on these
            call_command("migrate", app, "zero", verbosity=0)
        assert shape() == {}
    finally:
        call_command("migrate", verbosity=0)
    assert shape() == before
