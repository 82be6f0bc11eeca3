"""Images in messages: inside the request itself, and nowhere else."""

from __future__ import annotations

import base64
import binascii
import re

# Of one request. Each is computed like a thousand tokens or more.
MAX_IMAGES = 16
_HEAD = re.compile(r"data:image/(?:png|jpeg|jpg|webp|gif|bmp);base64,", re.I)


def check_image(url: str) -> str:
    """``url`` itself when it is a ``data:`` URL of an image. Raises ValueError with a sentence that quotes nothing."""
    if url[:8].lower().startswith(("http:", "https:")):
        raise ValueError(
            "an image by its address is refused, as the node would fetch it; send a data:image/png;base64 URL"
        )
    head = _HEAD.match(url)
    if head is None:
        raise ValueError("an image is a data: URL in base64 of type png, jpeg, webp, gif or bmp")
    try:
        base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the image is not valid base64") from None
    if head.end() == len(url):
        raise ValueError("the image is empty")
    return url
