"""Text from outside: whatever it is, a sentence comes out and never a traceback."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from msb_pull.ground.text import clipped
from msb_pull.image.host import literal
from msb_pull.source.http import redact
from msb_pull.source.http.addresses import is_loopback
from msb_pull.source.http.challenge import parse_challenges
from msb_pull.source.http.proxies import proxies_for
from msb_pull.source.http.retry import retry_after
from msb_pull.source.login.auth_file import _decode
from msb_pull.source.registry.endpoint import forbidden

CHALLENGE_TEXT = st.text(alphabet='Basicearrlm=",\\ \t\n;:/Ω\x00', max_size=200)


@given(CHALLENGE_TEXT)
def test_challenges(text):
    for challenge in parse_challenges([text]):
        assert challenge.scheme == challenge.scheme.lower() != ""


@given(st.text(max_size=100))
def test_retry_after(text):
    found = retry_after(text, 0)
    assert found is None or found >= 0


@given(st.text(max_size=300))
def test_what_is_shown_is_printable(text):
    for shown in (
        clipped(text, redact.MESSAGE_LIMIT),
        redact.url(text),
        redact.url("https://" + text),
        redact.host_of(text),
    ):
        assert shown.isprintable()
    assert len(clipped(text, redact.MESSAGE_LIMIT)) <= redact.MESSAGE_LIMIT


@given(st.text(alphabet="abc.0123456789[]:x@/%#?\\ ", max_size=40))
def test_addresses(text):
    literal(text)
    is_loopback(text)
    reason = forbidden("https://" + text, "https://registry.example")
    assert reason is None or isinstance(reason, str)
    assert forbidden(text, "https://registry.example") is None or isinstance(text, str)


@given(st.text(alphabet="abcdefABCDEF0123456789+/= \n:é", max_size=60))
def test_auth_values(text):
    pair = _decode(text)
    assert pair is None or pair[0]


@given(st.text(alphabet="a.0123456789[]:/,* ", max_size=40))
def test_no_proxy(text):
    assert isinstance(proxies_for("https://10.0.0.1:5000/", {"no_proxy": text}), dict)
