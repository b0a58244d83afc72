"""A worker's turn at a deployment, before a scripted box: what it sends, where it goes on, when it gives up."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from django.db.models import F
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.common.actor import Actor
from apps.deployments import selectors, services, transfer
from apps.deployments.models import Deployment, DeploymentStatus
from apps.devices.models import Device
from apps.model_registry.models import AIModel
from tests.apps.deployments.box import ModelBox
from tests.apps.model_registry.kit import ready
from tests.apps.proxy.kit import until
from tests.apps.proxy.stack import put_online
from tests.apps.proxy.stand_in import StandInDaemon

DATA = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def box() -> Iterator[ModelBox]:
    server = ModelBox(len(DATA))
    yield server
    server.close()


@pytest.fixture
def daemon(box: ModelBox) -> Iterator[StandInDaemon]:
    server = StandInDaemon(box.port)
    yield server
    server.close()


@pytest.fixture
def deployment(alice, local) -> Deployment:
    model = ready(alice.pk, data=DATA)
    device = Device.objects.create(owner=alice, name="box", epoch=1)
    return services.begin_deployment(
        actor=Actor.system("tests"), owner_id=alice.pk, model_id=model.pk, device_id=device.pk, now=timezone.now()
    )


@pytest.fixture
def online(deployment: Deployment, daemon: StandInDaemon) -> str:
    return put_online(str(deployment.device_id), str(deployment.owner_id), daemon)


def turn(deployment: Deployment, leaving=lambda: False) -> Deployment:
    """One turn, by the run that is its now."""
    deployment.refresh_from_db()
    transfer.continue_deployment(deployment_id=deployment.pk, run=deployment.run, stopping=leaving)
    deployment.refresh_from_db()
    return deployment


def jobs() -> list[ProcrastinateJob]:
    return list(ProcrastinateJob.objects.filter(task_name="model_registry.deploy").order_by("id"))


def test_all_of_it_arrives(deployment, online, box):
    done = turn(deployment)
    assert (done.status, done.bytes_done, done.error_code) == ("done", len(DATA), "")
    assert box.kept == DATA
    assert box.ranges == [f"bytes 0-{len(DATA) - 1}/{len(DATA)}"]
    assert done.finished_at is not None
    assert done.started_at is not None
    assert turn(deployment).run == done.run  # a job that comes twice does nothing
    assert len(box.ranges) == 1


def test_it_goes_on_where_it_broke_off(deployment, online, box):
    box.cut_at = 700_000
    waits = turn(deployment)
    assert (waits.status, waits.error_code, waits.attempts) == ("queued", "AGENT_UNREACHABLE", 1)
    assert len(jobs()) == 2
    assert jobs()[1].args["run"] == waits.run
    assert jobs()[1].scheduled_at is not None
    Deployment.objects.update(attempts=transfer.ATTEMPTS - 1)
    box.cut_at = 900_000  # it came on, so the failures are counted anew
    assert (turn(deployment).status, deployment.attempts, deployment.confirmed) == ("queued", 1, 700_000)
    done = turn(deployment)
    assert done.status == "done"
    assert box.ranges[2] == f"bytes 900000-{len(DATA) - 1}/{len(DATA)}"
    assert box.ranges[1] == f"bytes 700000-{len(DATA) - 1}/{len(DATA)}"
    assert box.kept == DATA


def test_it_goes_out_in_parts(deployment, online, box, monkeypatch):
    monkeypatch.setattr(transfer, "PART", 1 << 20)
    assert turn(deployment).status == "done"
    assert box.ranges == [f"bytes 0-1048575/{len(DATA)}", f"bytes 1048576-2097151/{len(DATA)}"]
    assert box.kept == DATA


def test_what_is_there_already_is_not_sent_again(deployment, online, box):
    box.kept = DATA
    assert turn(deployment).status == "done"
    assert box.ranges == []


def test_other_bytes_at_the_box_are_found_out(deployment, online, box):
    box.kept = DATA[::-1]
    failed = turn(deployment)
    assert (failed.status, failed.error_code) == ("failed", "AGENT_BAD_RESPONSE")
    assert "SHA-256" in failed.error_message
    assert box.kept == b""


def test_a_device_that_is_offline_is_waited_for_without_a_thread(deployment, daemon, box):
    waits = turn(deployment)
    assert (waits.status, waits.error_code, waits.attempts) == ("queued", "TUNNEL_DISCONNECTED", 0)
    Deployment.objects.update(moved_at=timezone.now() - dt.timedelta(minutes=59))
    assert turn(deployment).status == "queued"
    put_online(str(deployment.device_id), str(deployment.owner_id), daemon)
    assert turn(deployment).status == "done"


def test_patience_ends(deployment):
    Deployment.objects.update(moved_at=timezone.now() - dt.timedelta(minutes=61))
    failed = turn(deployment)
    assert (failed.status, failed.error_code) == ("failed", "TUNNEL_DISCONNECTED")
    assert failed.error_message


@pytest.mark.parametrize("status", ["404 Not Found", "413 Too Large", "405 No"])
def test_a_box_that_refuses(deployment, online, box, status):
    box.status = status
    failed = turn(deployment)
    assert (failed.status, failed.error_code) == ("failed", "AGENT_BAD_RESPONSE")
    assert status.split(" ", 1)[0] in failed.error_message


@pytest.mark.parametrize("status", ["500 Broken", "503 Busy", "409 Conflict"])
def test_a_box_that_may_take_it_later(deployment, online, box, status):
    box.status = status
    assert turn(deployment).status == "queued"
    Deployment.objects.update(attempts=transfer.ATTEMPTS - 1)
    assert turn(deployment).status == "failed"


def held(box: ModelBox, deployment: Deployment, meanwhile, monkeypatch, leaving=lambda: False) -> Deployment:
    """A turn that stands still amid its bytes until `meanwhile` was done; each look is one at the database then."""
    box.hold_at(100_000)
    monkeypatch.setattr(transfer, "BEAT_SECONDS", 0.0)
    beat, changed = services.record_progress, []

    def first_change(**facts):
        if box.between.is_set() and not changed:
            changed.append(meanwhile())
        return beat(**facts)

    monkeypatch.setattr(services, "record_progress", first_change)
    turn(deployment, leaving)
    box.go_on()
    until(lambda: not box.live, 30)  # what was held has ended, and writes nothing more
    return deployment


def test_cancelling_stops_it_amid_its_bytes(deployment, online, box, monkeypatch, alice):
    def cancel():
        services.cancel_deployment(
            actor=Actor.system("t"), owner_id=alice.pk, deployment_id=deployment.pk, now=timezone.now()
        )

    stopped = held(box, deployment, cancel, monkeypatch)
    assert (stopped.status, stopped.error_code) == ("cancelled", "")
    assert len(box.kept) < len(DATA)


@pytest.mark.parametrize("what", ["model", "device", "account"])
def test_what_it_needs_is_taken_away(deployment, online, box, monkeypatch, alice, what):
    def take_away():
        now = timezone.now()
        if what == "model":
            AIModel.objects.update(deleted_at=now)
        elif what == "device":
            Device.objects.update(deleted_at=now)
        else:
            type(alice).objects.update(is_active=False)

    stopped = held(box, deployment, take_away, monkeypatch)
    assert (stopped.status, stopped.error_code) == ("failed", "NOT_FOUND")
    assert what in stopped.error_message


def test_what_is_gone_before_it_begins(deployment, online, box):
    Device.objects.update(deleted_at=timezone.now())
    assert turn(deployment).status == "failed"
    assert box.heads == []


def test_a_worker_that_ends_hands_it_on(deployment, online, box, monkeypatch):
    leaving = []
    handed = held(box, deployment, lambda: leaving.append(True), monkeypatch, leaving=lambda: bool(leaving))
    assert (handed.status, handed.attempts, handed.beat_at) == ("queued", 0, None)
    assert jobs()[-1].args["run"] == handed.run
    assert jobs()[-1].scheduled_at is None
    assert turn(deployment).status == "done"


def unheard_for(time: dt.timedelta) -> None:
    """As if the last beat had been so much longer ago."""
    Deployment.objects.update(beat_at=F("beat_at") - time)


@pytest.mark.parametrize("off", [dt.timedelta(hours=-1), dt.timedelta(seconds=-12), dt.timedelta(hours=1)])
@pytest.mark.parametrize("whose", ["the worker's", "the other's"])
def test_whose_clock_is_off_does_not_matter(deployment, off, whose):
    """Neither a worker that beats loses its deployment, nor does one that was killed keep it."""
    now = timezone.now()
    theirs, others = (now + off, now) if whose == "the worker's" else (now, now + off)
    mine = services.claim_deployment(deployment_id=deployment.pk, run=0, now=theirs)
    assert mine is not None
    assert services.rescue_deployments(now=others) == 0
    unheard_for(services.STALE)
    held = {"deployment_id": mine.pk, "run": mine.run}
    assert services.record_progress(**held, bytes_done=1, confirmed=0, moved=True, now=theirs)
    assert services.rescue_deployments(now=others) == 0
    unheard_for(services.STALE)
    assert services.rescue_deployments(now=others) == 1


def test_of_two_workers_one_is_heard(deployment):
    now = timezone.now()
    mine = services.claim_deployment(deployment_id=deployment.pk, run=0, now=now)
    assert mine is not None
    assert services.claim_deployment(deployment_id=deployment.pk, run=0, now=now) is None
    assert services.rescue_deployments(now=now) == 0
    unheard_for(services.STALE)
    assert services.rescue_deployments(now=now) == 1
    assert services.rescue_deployments(now=now) == 0
    late = {"deployment_id": mine.pk, "run": mine.run}
    assert not services.record_progress(**late, bytes_done=1, confirmed=0, moved=True, now=now)
    assert not services.finish_deployment(**late, status=DeploymentStatus.DONE, now=now)
    assert not services.hand_over_deployment(**late, confirmed=0, now=now)
    deployment.refresh_from_db()
    assert (deployment.status, deployment.run) == ("queued", 2)
    assert jobs()[-1].args["run"] == 2
    assert services.claim_deployment(deployment_id=deployment.pk, run=2, now=now) is not None


def test_more_than_there_are_places_wait(deployment, online, box):
    owner = str(deployment.owner_id)
    held = [transfer._places.enter(owner) for _ in range(transfer.AT_ONCE)]
    try:
        assert held == [True, True, True, False], "the last place is for another"
        assert turn(deployment).status == "queued"
    finally:
        for _ in range(sum(held)):
            transfer._places.leave(owner)
    assert jobs()[-1].scheduled_at is not None
    assert turn(deployment).status == "done"


def test_boxes_of_one_owner_that_hang_hold_up_nobody_else(deployment, online, box, bob):
    held = [transfer._places.enter(str(bob.pk)) for _ in range(transfer.AT_ONCE)]
    try:
        assert turn(deployment).status == "done"
    finally:
        for _ in range(sum(held)):
            transfer._places.leave(str(bob.pk))


def test_the_more_wait_the_more_seldom_each_looks_for_a_place(deployment, online, box, monkeypatch):
    monkeypatch.setattr(transfer._places, "enter", lambda owner, seconds: False)
    monkeypatch.setattr(selectors, "count_queued", lambda owner_id: 60)
    began = timezone.now()
    turn(deployment)
    assert jobs()[-1].scheduled_at - began > dt.timedelta(seconds=14)
    monkeypatch.undo()
    assert selectors.count_queued(deployment.owner_id) == 1


def test_what_the_box_has_of_another_size_is_sent_anew(deployment, online, box):
    box.kept, box.size = DATA[:1000], 1000
    assert turn(deployment).status == "done"
    assert box.ranges == [f"bytes 0-{len(DATA) - 1}/{len(DATA)}"]
