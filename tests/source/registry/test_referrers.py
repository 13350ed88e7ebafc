"""Lists of referrers that come in pages (distribution-spec, "Listing Referrers"): all of them, within bounds."""

from __future__ import annotations

import json

import pytest

from msb_pull.image.digest import Digest
from msb_pull.image.reference import Reference
from msb_pull.source.http.pages import MAX_BYTES, MAX_PAGES
from tests.support.fault_registry import OCI_INDEX, Fault
from tests.support.registries import name

SUBJECT = Digest.of(b"subject")
PATH = f"/v2/acme/app/referrers/{SUBJECT}"


def page(*numbers: int, **fields) -> bytes:
    entries = [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": str(Digest.of(b"%d" % x)), "size": x}
        for x in numbers
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries} | fields).encode()


class Pages:
    """Answers with pages of one entry each; ``links`` are the headers, by page, or one for all of them."""

    def __init__(self, registry, link, bodies=None) -> None:
        self.registry, self.link, self.bodies = registry, link, bodies or {}
        self.asked: list[int] = []
        registry.endpoints[PATH] = self.answer

    def answer(self, request) -> Fault:
        number = int(request.query.get("last", ["0"])[0])
        self.asked.append(number)
        link = self.link(number)
        headers = {"Content-Type": OCI_INDEX} | ({"Link": link} if link else {})
        body = self.bodies.get(number, page(number + 1))
        return Fault(status=200 if body else 404, body=body, headers=headers)


def sizes(bench, server, **options) -> list[int]:
    source = bench(**options).client.source(Reference.parse(name(server)))
    return [entry.size for entry in source.attached().referrers(SUBJECT)]


def more(number: int) -> str:
    return f'<{PATH}?n=1&last={number + 1}>; rel="next"'


def test_all_pages_are_read(bench, registry):
    pages = Pages(registry, lambda number: more(number) if number < 4 else None)
    assert sizes(bench, registry) == [1, 2, 3, 4, 5]
    assert pages.asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "link", ["<?last=1>; rel=next", '<{url}{path}?last=1>; rel="next"', '<?x>; rel=first, <?last=1>; rel="last next"']
)
def test_forms_of_a_link(bench, registry, link):
    link = link.replace("{url}", registry.url).replace("{path}", PATH)
    pages = Pages(registry, lambda number: link if number == 0 else None)
    assert sizes(bench, registry) == [1, 2]
    assert pages.asked == [0, 1]


@pytest.mark.parametrize(
    "link",
    [
        "<{other}{path}?last=1>; rel=next",
        "<//127.0.0.1:1{path}?last=1>; rel=next",
        "</v2/acme/other/referrers/x?last=1>; rel=next",
        "<?last=1>; rel=prev",
        "<{path}>; rel=next",
        "<http://[?last=1>; rel=next",
        "nonsense",
        "<?" + "x" * 5000 + ">; rel=next",
    ],
)
def test_a_link_to_anything_else_is_not_followed(bench, registry, other, link):
    link = link.replace("{other}", other.url).replace("{path}", PATH)
    pages = Pages(registry, lambda number: link)
    assert sizes(bench, registry) == [1]
    assert (pages.asked, other.requests) == ([0], [])


def test_a_list_without_an_end_is_left_after_a_number_of_pages(bench, registry):
    pages = Pages(registry, more)
    assert sizes(bench, registry) == list(range(1, MAX_PAGES + 1))
    assert pages.asked == list(range(MAX_PAGES))


def test_pages_that_are_large_together_end_earlier(bench, registry):
    large = {number: page(number + 1, annotations={"x": "y" * (3 << 20)}) for number in range(MAX_PAGES)}
    pages = Pages(registry, more, large)
    assert len(sizes(bench, registry)) == len(pages.asked) == MAX_BYTES // (3 << 20) + 1


def test_a_circle_of_pages_ends(bench, registry):
    pages = Pages(registry, lambda number: more(0))
    assert sizes(bench, registry) == [1, 2]
    assert pages.asked == [0, 1]


@pytest.mark.parametrize("body", [b"", b"<html>"])
def test_a_page_that_is_missing_or_damaged_costs_what_is_behind_it(bench, registry, body):
    Pages(registry, more, {2: body})
    assert sizes(bench, registry) == [1, 2]


def test_a_mirror_is_told_the_registry_on_every_page(bench, registry, other):
    pages = Pages(other, lambda number: more(number) if number < 1 else None)
    assert sizes(bench, registry, mirrors={registry.host: (other.url,)}) == [1, 2]
    assert pages.asked == [0, 1] and registry.requests == []
    assert [request.query["ns"] for request in other.requests] == [[registry.host]] * 2
