"""A box's answer that a middleware lost: what it holds is let go of before the other answer is written."""

from django.http import HttpRequest, HttpResponse

from apps.proxy.answer import BoxAnswer
from apps.proxy.middleware import CarriedMiddleware
from tunnel.http import ResponseReader


class Forwarded:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def refuse(self, code):
        self.told.append(code)

    def close(self):
        self.told.append("close")


def carried(told):
    reader = ResponseReader(b"GET")
    reader.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert reader.head is not None
    return BoxAnswer(told, reader.head, lambda: told.told.append("done"))


def through(request, response):
    return CarriedMiddleware(lambda _: response)(request)


def test_an_answer_that_was_lost():
    told, request, other = Forwarded(), HttpRequest(), HttpResponse(status=500)
    request.carried = carried(told)
    assert through(request, other) is other
    assert told.told == ["INTERNAL_ERROR", "close", "done"]


def test_an_answer_that_goes_out_is_left_to_the_server():
    told, request = Forwarded(), HttpRequest()
    request.carried = carried(told)
    assert through(request, request.carried) is request.carried
    assert told.told == []


def test_a_request_that_carried_nothing():
    other = HttpResponse()
    assert through(HttpRequest(), other) is other
