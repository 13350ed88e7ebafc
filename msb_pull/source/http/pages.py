"""Lists that a registry hands out in pages (distribution-spec, "Listing Referrers"; the header is that of RFC 8288)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from requests.utils import parse_header_links

if TYPE_CHECKING:
    from msb_pull.source.http.answer import Answer

MAX_PAGES = 16
# Bytes of all pages together.
MAX_BYTES = 16 << 20
_MAX_QUERY = 4096


def next_query(answer: Answer) -> str | None:
    """The query that asks for the next page of this list; None where there is none.

    A link to any other place counts as none: what is asked, and who gets a password, is not the registry's choice.
    """
    for link in parse_header_links(answer.headers.get("Link", "")):
        if "next" not in link.get("rel", "").lower().split():
            continue
        try:
            here, there = urlsplit(answer.url), urlsplit(urljoin(answer.url, link["url"]))
        except ValueError:
            return None
        same = (here.scheme, here.netloc, here.path) == (there.scheme, there.netloc, there.path)
        query = there.query
        fits = 0 < len(query) <= _MAX_QUERY and query.isascii() and query.isprintable() and " " not in query
        return query if same and fits else None
    return None
