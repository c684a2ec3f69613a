"""The page that asks a team and shows its rounds: one file, and the headers that go with it."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from typing import NamedTuple


class Page(NamedTuple):
    """What is served at `/`."""

    html: bytes
    headers: Mapping[str, str]


def load_page() -> Page:
    """The page, under a policy that runs its own script alone and reaches its own server alone.

    The policy names script and style by their hashes. It also refuses text as markup (Trusted
    Types), so that nothing which a model writes becomes an element.
    """
    html = importlib.resources.files(__package__).joinpath("page.html").read_bytes()
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script", html),
        "style-src": _hash_of("style", html),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(html, headers)


def _hash_of(tag: str, html: bytes) -> str:
    """The source expression of the page's one inline element of this tag."""
    (content,) = re.findall(rb"<%b\b[^>]*>(.*?)</%b>" % (tag.encode(), tag.encode()), html, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
