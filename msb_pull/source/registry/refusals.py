"""What a refusal means: which error, in the registry's own words; and web pages in place of documents."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import AccessError, MsbPullError, NetworkError, NotFoundError
from msb_pull.source.http.failures import PROXY_LOGIN, PROXY_LOGIN_HINT, Failure
from msb_pull.source.http.retry import RETRY_STATUS

if TYPE_CHECKING:
    from msb_pull.source.http.answer import Answer

_BODY_LIMIT = 64 * 1024
_DENIED = frozenset({"UNAUTHORIZED", "DENIED"})
# Networks of hotels and companies answer in place of the registry.
PORTAL_HINT = "a login portal or a proxy may answer in its place: open a page in a browser, or check HTTPS_PROXY"
_PAGE = re.compile(rb"<(?!\?xml)|<\?xml[^>]*>\s*<(!doctype\s+)?html", re.IGNORECASE)
# What may precede a document.
_BLANK = b"\xef\xbb\xbf \t\r\n"
_UNKNOWN = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND"})


class Refusal(NamedTuple):
    """An unsuccessful answer: its status and, where the body had them, the registry's codes and message."""

    status: int
    codes: tuple[str, ...] = ()
    message: str = ""

    @property
    def retry(self) -> bool:
        """Whether another try may help."""
        return self.status in RETRY_STATUS

    @property
    def limited(self) -> bool:
        """Whether it says that we ask too often."""
        return self.status == 429 or "TOOMANYREQUESTS" in self.codes

    def __str__(self) -> str:
        return self.told_by("registry")

    def told_by(self, who: str) -> str:
        """Like ``registry answered 401 UNAUTHORIZED: authentication required``, where ``who`` answered."""
        code = self.codes[0] if self.codes else responses.get(self.status, "")
        text = f"{who} answered {self.status} {code}".rstrip()
        return f"{text}: {self.message}" if self.message else text

    def error(self, what: str, registry: str, *, named: bool) -> MsbPullError:
        """The error for a person; ``named`` says that credentials were sent."""
        if self.limited:
            return NetworkError(f"{what}: too many requests", cause=str(self), hint=limit_hint(registry, named))
        if self.status == 401 or (self.status == 403 and not set(self.codes) & _UNKNOWN):
            return denied(what, registry, str(self), named=named)
        if self.status == 404 or set(self.codes) & _UNKNOWN:
            hint = "check the name and the tag; a private repository may also need `docker login " + registry + "`"
            return NotFoundError(f"{what}: not found", cause=str(self), hint=None if named else hint)
        if self.status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            # No registry asks for this: a request in the clear has not come further than the proxy.
            return NetworkError(f"{what}: no answer from {registry}", cause=PROXY_LOGIN, hint=PROXY_LOGIN_HINT)
        portal = PORTAL_HINT if self.status == HTTPStatus.NETWORK_AUTHENTICATION_REQUIRED else None
        return NetworkError(f"{what}: {registry} cannot serve it", cause=str(self), hint=portal)


def denied(what: str, registry: str, cause: str, *, named: bool) -> AccessError:
    """The error for missing or refused credentials. Registries answer alike for "no such repository"."""
    if named:
        hint = (
            f"the credentials for {registry} may be wrong or lack the right to pull, or the repository does not exist; "
            f"log in again with `docker login {registry}`, or try --anonymous if the image is public"
        )
    else:
        hint = (
            f"log in with `docker login {registry}`; msb-pull reads ~/.docker/config.json "
            "(a repository that does not exist is refused in the same way)"
        )
    return AccessError(f"{what}: access denied", cause=cause, hint=hint)


def limit_hint(registry: str, named: bool) -> str:
    """What to do about a rate limit."""
    if registry == "docker.io" and not named:
        return "Docker Hub allows more with an account: `docker login`"
    return "wait and try again, or use a mirror"


def read_refusal(answer: Answer) -> Refusal:
    """Reads the error body (distribution-spec), at most 64 KiB of it; any other body is ignored."""
    try:
        body = answer.read(_BODY_LIMIT)
        document = json.loads(body) if len(body) <= _BODY_LIMIT else None
    except (Failure, ValueError, RecursionError):
        document = None
    listed = document.get("errors") if isinstance(document, dict) else None
    codes: list[str] = []
    messages: list[str] = []
    for item in listed[:5] if isinstance(listed, list) else ():
        if not isinstance(item, dict):
            continue
        code, message = item.get("code"), item.get("message")
        if isinstance(code, str) and code:
            codes.append(answer.quote(code, limit=40))
        if isinstance(message, str) and message:
            messages.append(message)
    return Refusal(answer.status, tuple(codes), answer.quote("; ".join(messages)))


def is_web_page(answer: Answer, body: bytes = b"") -> bool:
    """Whether an answer is HTML: by what its ``body`` begins with, since types lie both ways, else by its type."""
    named = answer.headers.get("Content-Type", "").strip().lower().startswith(("text/html", "application/xhtml"))
    if not body:
        return named
    start = body.lstrip(_BLANK)[:200]
    return _PAGE.match(start) is not None or (named and start.startswith(b"<"))


def web_page(answer: Answer, part: str) -> Failure:
    """The failure for a web page where ``part`` should be: what is in between will not go away within seconds."""
    reason = f"{answer.host} sent a web page (HTML) in place of the {part}"
    return Failure(reason, retry=False, answered=True, hint=PORTAL_HINT)


def check_document(answer: Answer, body: bytes, part: str) -> None:
    """Raises Failure where the body of a success is a web page, or was cut off before the document had ended.

    Without a length, a connection that breaks looks like one that ends; but no beginning of a JSON object is one.
    """
    if is_web_page(answer, body):
        raise web_page(answer, part)
    start = body.lstrip(_BLANK)[:1]
    if start in (b"", b"<"):
        # The storage behind a registry reports its errors in XML.
        raise Failure(f"{answer.host} sent {'XML' if start else 'nothing'} in place of the {part}", answered=True)
    if answer.open_ended:
        try:
            json.loads(body)
        except RecursionError:
            # Whatever is wrong with it, no byte is missing that another try would bring.
            return
        except ValueError:
            raise Failure(f"the {part} was cut off after {len(body)} bytes", answered=True) from None
