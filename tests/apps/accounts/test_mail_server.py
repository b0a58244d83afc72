"""Mails through procrastinate's real worker to a real SMTP server (aiosmtpd, in a process of its own)."""

import mailbox
import os
import socket
import stat
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from unittest import mock

import pytest
from django.db import connection
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import tasks
from cloud.mail import mail_settings
from tests.apps.conftest import PASSWORD, Api
from tests.conftest import StartProcess
from tests.ports import free_port

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _no_jobs(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE procrastinate_jobs CASCADE")


def work() -> None:
    """Run all jobs that wait, as a worker does."""
    alone = mock.patch.dict(app.periodic_registry.periodic_tasks, clear=True)
    with alone, app.replace_connector(app.connector.get_worker_connector()) as worker:
        worker.run_worker(wait=False, install_signal_handlers=False, listen_notify=False)


def register(locale: str = "") -> None:
    body = {"email": "ann@example.com", "password": PASSWORD, "name": "Ann", "locale": locale}
    assert Api()("POST", "/api/auth/register", body).status == 201


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as talk:
            return talk.recv(4).startswith(b"220")
    except OSError:
        return False


@pytest.fixture
def smtp(settings) -> int:
    """Our settings name a server at this port; nobody listens there yet."""
    port = free_port()
    mail = {"EMAIL_HOST": "127.0.0.1", "EMAIL_PORT": port, "EMAIL_SECURITY": "none", "EMAIL_TIMEOUT_SECONDS": 30.0}
    use_mail(settings, mail)
    return port


def use_mail(settings, ours: dict[str, object], folder: str = "") -> None:
    """Let Django send as these settings of ours say."""
    for name, value in mail_settings({**settings.VISIONA, **ours}, folder).items():
        setattr(settings, name, value)


def listen(start_process: StartProcess, port: int, folder: Path) -> None:
    command = [
        "python",
        "-m",
        "aiosmtpd",
        "-n",
        "-c",
        "aiosmtpd.handlers.Mailbox",
        str(folder),
        "-l",
        f"127.0.0.1:{port}",
    ]
    process = start_process(command, name="smtp", env=dict(os.environ))
    process.wait_for(lambda: answers(port), "greeting of the SMTP server", 60)


def letters(folder: Path) -> list[EmailMessage]:
    return [BytesParser(policy=default).parsebytes(each.as_bytes()) for each in mailbox.Maildir(folder, create=False)]


def test_a_mail_arrives_in_the_users_language_and_its_link_works(smtp, start_process, tmp_path, caplog):
    folder = tmp_path / "maildir"
    listen(start_process, smtp, folder)
    register("zh-TW")
    work()
    (letter,) = letters(folder)
    assert (letter["To"], letter["From"]) == ("ann@example.com", "VisionA Cloud <no-reply@localhost>")
    assert letter["Subject"] == "請確認您的 VisionA Cloud 電子郵件"
    assert letter["Message-ID"].endswith("@localhost>")
    text = letter.get_content()
    token = next(line for line in text.splitlines() if "#verify=" in line).partition("#verify=")[2].strip()
    assert Api()("POST", "/api/auth/email/verify", {"token": token}).data["email_verified"] is True
    assert "mail_sent" in caplog.text
    assert token not in caplog.text
    assert "ann@example.com" not in caplog.text


def test_while_the_server_is_away_the_job_waits_and_is_tried_again(smtp, start_process, tmp_path):
    register()
    work()
    job = ProcrastinateJob.objects.get(task_name="accounts.send_mail")
    assert (job.status, job.attempts) == ("todo", 1)
    assert job.scheduled_at is not None
    folder = tmp_path / "maildir"
    listen(start_process, smtp, folder)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE procrastinate_jobs SET scheduled_at = now() WHERE id = %s", [job.pk])
    work()
    assert len(letters(folder)) == 1
    assert ProcrastinateJob.objects.get(pk=job.pk).status == "succeeded"


def test_a_registration_that_fails_sends_nothing(smtp):
    register()
    assert Api()("POST", "/api/auth/register", {"email": "ANN@example.com", "password": PASSWORD}).code == "EMAIL_TAKEN"
    assert ProcrastinateJob.objects.filter(task_name="accounts.send_mail").count() == 1


def test_without_a_server_development_writes_into_a_folder_of_its_own(settings, tmp_path):
    settings.MAIL_FOLDER = str(tmp_path / "var" / "mail")
    use_mail(settings, {"EMAIL_HOST": ""}, settings.MAIL_FOLDER)
    register()
    work()
    (file,) = (tmp_path / "var" / "mail").iterdir()
    assert "#verify=" in file.read_text()
    assert stat.S_IMODE((tmp_path / "var" / "mail").stat().st_mode) == 0o700


def test_how_often_a_mail_is_tried():
    waits = [
        tasks.MAIL_RETRY.exponential_wait ** (attempt + 1) for attempt in range(tasks.MAIL_RETRY.max_attempts or 0)
    ]
    assert 4 * 3600 < sum(waits[:-1]) < 8 * 3600
