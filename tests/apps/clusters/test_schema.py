"""What the tables themselves hold to, the admin, and that the migrations go both ways."""

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client

from apps.accounts.models import User
from apps.clusters.models import Cluster, ClusterMember
from apps.devices.models import Device


def refuses(act):
    with pytest.raises(IntegrityError), transaction.atomic():
        act()


def test_constraints(alice, bob):
    cluster = Cluster.objects.create(owner=alice, name="a")
    refuses(lambda: Cluster.objects.create(owner=alice, name="a"))
    Cluster.objects.create(owner=bob, name="a")
    device = Device.objects.create(owner=alice, name="box")
    ClusterMember.objects.create(cluster=cluster, device=device, weight=100)
    refuses(lambda: ClusterMember.objects.create(cluster=cluster, device=device))
    other = Device.objects.create(owner=alice, name="box")
    for weight in (0, 101):
        refuses(lambda weight=weight: ClusterMember.objects.create(cluster=cluster, device=other, weight=weight))


@pytest.mark.django_db(transaction=True)
def test_up_down_up():
    try:
        call_command("migrate", "clusters", "zero", verbosity=0)
        assert "clusters" not in connection.introspection.table_names()
    finally:
        call_command("migrate", verbosity=0)
    assert {"clusters", "cluster_members"} <= set(connection.introspection.table_names())


def test_the_admin_shows_clusters_and_changes_nothing(alice):
    cluster = Cluster.objects.create(owner=alice, name="Hall")
    member = ClusterMember.objects.create(cluster=cluster, device=Device.objects.create(owner=alice, name="cam"))
    User.objects.create_superuser("root@example.com", "correct horse battery")
    client = Client()
    assert client.login(username="root@example.com", password="correct horse battery")
    listed = client.get("/admin/clusters/cluster/?q=hall").content.decode()
    assert "Hall" in listed
    assert "alice@example.com" in listed
    page = client.get(f"/admin/clusters/cluster/{cluster.pk}/change/").content.decode()
    assert "cam" in page
    assert str(member) not in page  # it is made of two ids
    assert client.get("/admin/clusters/cluster/add/").status_code == 403
    assert client.post(f"/admin/clusters/cluster/{cluster.pk}/change/", {"name": "x"}).status_code == 403
    assert ClusterMember.objects.get().pk == member.pk
