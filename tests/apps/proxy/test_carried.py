"""A box's answer that a middleware lost: what it holds is let go of before the other answer is written."""

import pytest
from django.http import HttpRequest, HttpResponse

from apps.proxy.exchanges.carried import Carried
from apps.proxy.middleware import CarriedMiddleware

pytestmark = pytest.mark.django_db  # the end of a response is the end of a request, which gives its connection back


def carried(told):
    return Carried(200, lambda: told.append("settled"), lambda: told.append("abandoned"), goes_on=False)


def through(request, response):
    return CarriedMiddleware(lambda _: response)(request)


def test_an_answer_that_was_lost():
    told, request, other = [], HttpRequest(), HttpResponse(status=500)
    request.carried = carried(told)
    assert through(request, other) is other
    request.carried.close()
    assert told == ["abandoned"]


def test_an_answer_that_goes_out_is_left_to_the_server():
    told, request = [], HttpRequest()
    request.carried = carried(told)
    assert through(request, request.carried) is request.carried
    assert told == []
    assert b"".join(request.carried) == b""
    request.carried.close()
    assert told == ["settled"]


def test_one_that_the_server_never_asked_for_is_let_go():
    told = []
    carried(told).close()
    assert told == ["abandoned"]


def test_a_request_that_carried_nothing():
    other = HttpResponse()
    assert through(HttpRequest(), other) is other
