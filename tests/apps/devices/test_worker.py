"""The jobs, run by procrastinate's real worker: in this process, and as the process that operators start."""

import datetime as dt
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from unittest import mock

import pytest
import redis as redis_package
from django.db import connection, transaction
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager

from apps.accounts.services import set_active
from apps.devices import services
from apps.devices.models import DeviceEvent, LinkStatus
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.pairing.services import expire_tokens, revoke_token
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, Daemon, device_of, issue, named, row, settle

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_jobs(transactional_db: None) -> None:
    """Django's flush leaves procrastinate's tables alone, since their models are unmanaged."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE procrastinate_jobs CASCADE")


@pytest.fixture
def daemon(transactional_db: None) -> Daemon:
    node = Daemon()
    node.beat()
    settle()
    return node


@pytest.fixture
def box(daemon, alice):
    secret = issue(alice)
    ask = named(secret)
    return daemon.ask_all(ask)[0], secret, ask["session"]


def work(concurrency: int = 1) -> dict[str, str]:
    """Run all jobs that wait, as a worker does, and no periodic ones; the last state of each task."""
    alone = mock.patch.dict(app.periodic_registry.periodic_tasks, clear=True)
    with alone, app.replace_connector(app.connector.get_worker_connector()) as worker:
        worker.run_worker(wait=False, install_signal_handlers=False, listen_notify=False, concurrency=concurrency)
    return dict(ProcrastinateJob.objects.order_by("id").values_list("task_name", "status"))


def periodic() -> dict[str, str]:
    """What runs by itself in the apps that these tests are about."""
    tasks = app.periodic_registry.periodic_tasks.values()
    ours = ("audit.", "devices.", "pairing.")
    return {task.task.name: task.cron for task in tasks if task.task.name.startswith(ours)}


def test_what_runs_by_itself():
    assert periodic() == {
        "devices.follow_registry": "* * * * * */5",
        "pairing.expire_tokens": "*/5 * * * *",
        "devices.remove_old_jobs": "7 * * * *",
        "devices.retention": "43 * * * *",
        "audit.retention": "41 * * * *",
        "devices.retry_stalled_jobs": "* * * * *",
    }
    assert [task.task.name for task in app.periodic_registry.periodic_tasks.values() if task.task.lock] == []


def test_the_table_follows_the_registry(box):
    app.configure_task("devices.follow_registry").defer(timestamp=0)
    assert work()["devices.follow_registry"] == "succeeded"
    assert device_of(box[0]).link_status == LinkStatus.ONLINE


def test_a_disabled_users_tunnels_are_closed_by_a_job(box, alice, daemon):
    set_active(actor=ACTOR, user_id=alice.pk, active=False, now=timezone.now())
    assert work()["tunnels.close_user"] == "succeeded"
    assert registry.lookup([box[0]["device_id"]]) == {}
    assert (box[2], 4403) in {(order["session"], order["code"]) for order in daemon.beat(count=1)["close"]}


def test_a_revoked_token_stands_in_the_devices_history(box, alice):
    revoke_token(actor=ACTOR, token_id=row(box[1]).id, owner_id=alice.pk, now=timezone.now())
    assert work()["devices.token_revoked"] == "succeeded"
    assert DeviceEvent.objects.first().action == "token_revoked"


def test_a_process_that_died_after_the_commit_leaves_the_closing_to_the_job(box, alice, daemon, monkeypatch):
    with monkeypatch.context() as dead:
        dead.setattr("apps.tunnels.services.registry.end", lambda epochs: [])
        device_id = uuid.UUID(box[0]["device_id"])
        services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device_id, now=timezone.now())
    assert registry.lookup([box[0]["device_id"]]) != {}
    assert work()["tunnels.end_devices"] == "succeeded"
    assert registry.lookup([box[0]["device_id"]]) == {}
    assert {order["code"] for order in daemon.beat(count=1)["close"]} == {4401}


def test_a_job_of_an_act_that_was_rolled_back_never_runs(box, alice):
    with transaction.atomic():
        services.unpair_all(actor=ACTOR, owner_id=alice.pk, now=timezone.now())
        transaction.set_rollback(True)
    assert work() == {}
    assert registry.lookup([box[0]["device_id"]]) != {}


def test_redis_is_down_when_the_job_runs(box, alice, monkeypatch):
    """The job stays and is tried again."""
    set_active(actor=ACTOR, user_id=alice.pk, active=False, now=timezone.now())

    def refuse(user_id: str) -> None:
        raise redis_package.ConnectionError("no Redis")

    monkeypatch.setattr(registry, "lookup_user", refuse)
    assert work()["tunnels.close_user"] == "todo"
    assert ProcrastinateJob.objects.get().attempts == 1


def test_all_devices_of_one_who_leaves(box, alice):
    app.configure_task("devices.unpair_all").defer(user_id=str(alice.pk))
    assert work()["devices.unpair_all"] == "succeeded"
    assert device_of(box[0]).deleted_at is not None


def test_a_killed_workers_jobs_are_done_by_another(box, alice):
    app.configure_task("tunnels.close_user").defer(user_id=str(alice.pk))
    app.configure_task("devices.follow_registry", queueing_lock="devices.follow_registry").defer(timestamp=0)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE procrastinate_jobs SET status = 'doing'")  # by a worker that is gone
    assert work() == {"tunnels.close_user": "doing", "devices.follow_registry": "doing"}
    app.configure_task("devices.retry_stalled_jobs").defer(timestamp=0)
    work()
    assert work() == {"tunnels.close_user": "succeeded", "devices.retry_stalled_jobs": "succeeded"}
    assert registry.lookup([box[0]["device_id"]]) == {}


def test_a_job_whose_end_could_not_be_written_is_done_again(box, alice, daemon, monkeypatch):
    """PostgreSQL went away under the statement: the worker lives on, and nobody else may take the job."""
    app.configure_task("tunnels.close_user").defer(user_id=str(alice.pk))
    app.configure_task("devices.retry_stalled_jobs").defer(timestamp=0)
    finish, broken = JobManager.finish_job, []

    async def breaks_once(manager, job, status, delete_job):
        if job.task_name == "tunnels.close_user" and not broken:
            broken.append(job)
            raise ConnectorException
        await finish(manager, job, status, delete_job)

    monkeypatch.setattr(JobManager, "finish_job", breaks_once)
    assert work() == {"tunnels.close_user": "succeeded", "devices.retry_stalled_jobs": "succeeded"}
    assert len(broken) == 1
    assert ProcrastinateJob.objects.get(task_name="tunnels.close_user").attempts == 2


def test_a_job_that_runs_is_not_done_again(box, alice, monkeypatch):
    """Neither one that takes long nor the one that looks for them."""

    def takes_long(user_id, **given):
        wait_for(lambda: ProcrastinateJob.objects.get(task_name="devices.retry_stalled_jobs").status == "succeeded")

    monkeypatch.setattr("apps.tunnels.services.close_user", takes_long)
    monkeypatch.setattr("apps.devices.tasks.SETTLE_SECONDS", 0.0)
    app.configure_task("tunnels.close_user").defer(user_id=str(alice.pk))
    app.configure_task("devices.retry_stalled_jobs").defer(timestamp=0)
    assert work(concurrency=2) == {"tunnels.close_user": "succeeded", "devices.retry_stalled_jobs": "succeeded"}
    assert set(ProcrastinateJob.objects.values_list("attempts", flat=True)) == {1}


def test_old_jobs_are_removed(box):
    for task, age in (
        ("devices.follow_registry", 2),
        ("pairing.expire_tokens", 24 * 29),
        ("pairing.expire_tokens", 24 * 31),
    ):
        app.configure_task(task).defer(timestamp=0)
        work()
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE procrastinate_events SET at = at - %s WHERE job_id = (SELECT max(id) FROM procrastinate_jobs)",
                [dt.timedelta(hours=age)],
            )
    app.configure_task("devices.remove_old_jobs").defer(timestamp=0)
    work()
    left = list(ProcrastinateJob.objects.order_by("id").values_list("task_name", flat=True))
    assert left == ["pairing.expire_tokens", "devices.remove_old_jobs"]


def test_tokens_expire(daemon, alice):
    now = timezone.now()
    idle = daemon.ask_all(named(issue(alice)))[0]
    busy = daemon.ask_all(named(issue(alice), "b"))[0]
    forgotten, recent = issue(alice, now=now - dt.timedelta(days=32)), issue(alice, now=now - dt.timedelta(days=2))
    SessionToken.objects.update(expires_at=now)
    type(device_of(busy)).objects.filter(id=busy["device_id"]).update(link_status=LinkStatus.ONLINE)
    assert expire_tokens(now=now) == {"prolonged": 1, "expired": 1, "dropped": 1}
    assert expire_tokens(now=now) == {"prolonged": 0, "expired": 0, "dropped": 0}
    assert daemon.ask(idle["session_token"])["code"] == "TOKEN_EXPIRED"
    assert daemon.ask(busy["session_token"])["ok"] is True
    assert daemon.ask(forgotten)["code"] == "UNAUTHENTICATED"
    assert daemon.ask(recent)["code"] == "TOKEN_EXPIRED"
    assert PairingToken.objects.filter(status=PairingStatus.ISSUED).count() == 1


# --- the process ------------------------------------------------------------------------------------------------------
class Worker:
    """The process that operators start, and what they start it with: again whenever it has ended."""

    def __init__(self) -> None:
        self.starts = 0
        self.keep()

    def keep(self) -> None:
        """Start it if it does not run."""
        if self.starts == 0 or self.process.poll() is not None:
            self.starts += 1
            env = {**os.environ, "VISIONA_DB_NAME": str(connection.settings_dict["NAME"])}
            command = [sys.executable, "manage.py", "procrastinate", "worker"]
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def worker():
    found = Worker()
    yield found
    found.close()


def wait_for(look, seconds=60.0, meanwhile=lambda: None):
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "not within the time"
        meanwhile()
        time.sleep(0.05)


def link_is(box, status) -> bool:
    return device_of(box[0]).link_status == status


def comes_online(box, daemon) -> None:
    """A process may take longer to start than a node lives without a heartbeat."""
    wait_for(lambda: link_is(box, LinkStatus.ONLINE), meanwhile=lambda: daemon.beat(count=1))


def waits_for_a_lock() -> bool:
    """Whether some statement of another connection does."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(cursor.fetchone()[0])


def break_connections() -> None:
    """What a restart of PostgreSQL does to its clients."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database()"
        )


def test_the_worker_process_follows_within_seconds_and_stops_at_once(box, daemon, worker):
    comes_online(box, daemon)
    registry.end({box[0]["device_id"]: 1})
    wait_for(lambda: link_is(box, LinkStatus.OFFLINE))
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(30) == 0


def test_a_worker_whose_connections_break_goes_on(box, daemon, worker):
    """Idle ones are replaced. One that breaks under a statement ends the process, which is then started again."""
    comes_online(box, daemon)
    break_connections()
    registry.end({box[0]["device_id"]: 1})
    wait_for(lambda: link_is(box, LinkStatus.OFFLINE), meanwhile=worker.keep)


def test_a_worker_whose_statement_breaks_goes_on(box, daemon, worker):
    """If it was the process's own statement, it ends and is started again; it must not linger half alive."""
    comes_online(box, daemon)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE procrastinate_jobs IN ACCESS EXCLUSIVE MODE")
        wait_for(waits_for_a_lock)
        break_connections()
    registry.end({box[0]["device_id"]: 1})
    wait_for(lambda: link_is(box, LinkStatus.OFFLINE), meanwhile=worker.keep)
