"""The header WWW-Authenticate, in which servers put several challenges (rows B5 and B6)."""

from __future__ import annotations

import pytest

from msb_pull.source.http.challenge import Challenge, choose_challenge, parse_challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (['BEARER REALM="x",Service=y'], [("bearer", {"realm": "x", "service": "y"})]),
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        ([r'Bearer realm="https://a",service="he\"\l\lo"'], [("bearer", {"realm": "https://a", "service": 'he"llo'})]),
        (['Bearer realm = "x" , service = "y"'], [("bearer", {"realm": "x", "service": "y"})]),
        (["Bearer realm=https://a/token?x=1,service="], [("bearer", {"realm": "https://a/token?x=1", "service": ""})]),
        (['Bearer service=""'], [("bearer", {"service": ""})]),
        (['Bearer realm="x",error="insufficient_scope",other=1'],
         [("bearer", {"realm": "x", "error": "insufficient_scope", "other": "1"})]),
        (["Negotiate, Basic realm=\"x\", Bearer realm=\"y\",service=\"z\""],
         [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})]),
        (["Negotiate", 'Basic realm="x"', 'Bearer realm="y"'],
         [("negotiate", {}), ("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (['Negotiate abc/+def==, Basic realm="a, b"'], [("negotiate", {}), ("basic", {"realm": "a, b"})]),
        (["Basic"], [("basic", {})]),
        (["", " , ,"], []),
        (['realm="x"'], []),
        (['Bearer realm="never closed'], [("bearer", {})]),
    ],
)  # fmt: skip
def test_b5_b6_challenges(headers, expected):
    assert [(x.scheme, dict(x.parameters)) for x in parse_challenges(headers)] == expected


def test_b6_a_header_without_end_is_read_in_part():
    found = parse_challenges(["Bearer " + "a=b," * 100_000])
    assert found[0] == Challenge("bearer", {"a": "b"})


@pytest.mark.parametrize("order", ["Basic realm=b, Bearer realm=t", "Bearer realm=t, Basic realm=b"])
def test_b5_bearer_is_chosen_before_basic(order):
    assert choose_challenge(parse_challenges(["Negotiate, " + order])) == Challenge("bearer", {"realm": "t"})
