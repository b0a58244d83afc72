import pytest

from tests.apps.converter.kit import SECRET
from tests.apps.model_registry.kit import ready
from tests.apps.stores import local, store
from tests.apps.webhooks.conftest import no_jobs
from tests.apps.webhooks.receiver import receiving

__all__ = ["local", "no_jobs", "store"]


@pytest.fixture
def converter(settings):
    """A converter that takes what it is sent, and does nothing by itself."""
    with receiving() as receiver:
        receiver.answer = 202
        values = {"CONVERTER_URL": receiver.url, "CONVERTER_SECRET": (SECRET,), "PUBLIC_URL": "http://testserver"}
        settings.VISIONA = {**settings.VISIONA, **values}
        yield receiver


@pytest.fixture
def model(alice, local):
    """What is to be converted."""
    return ready(alice.pk, "yolo")
