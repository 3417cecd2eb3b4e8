"""Prompt sets from where they are published: in memory, compared, then written.

An interrupted download leaves nothing behind.
"""

import hashlib
import time
from pathlib import Path

import httpx

from t2i_rl.errors import UserError
from t2i_rl.outputs import whole_file
from t2i_rl.prompts.files import read
from t2i_rl.prompts.sets import find_set, place, prompt_file, verify

MOST_BYTES = 16 * 2**20  # of one file
PATIENCE = 30.0  # seconds without a byte
LONGEST = 300.0  # seconds for one file


def get(name: str, address: str = "") -> dict[str, Path]:
    """Download the files of a set that are not here, and look that the others are still as they were.

    Nothing is written before all have arrived.
    address: what the files lie below, in place of the set's own. Raises UserError, or RewardError for other bytes than
    were recorded.
    """
    wanted = find_set(name)
    below = (address or wanted.address).rstrip("/")
    if not below and wanted.made:
        raise UserError(f"{name} is not downloaded but made: run t2i-rl data make {name}")
    fresh: dict[str, str] = {}
    for one, source in wanted.files.items():
        if place(one).is_file():
            prompt_file(one)
        elif below:
            fresh[one] = _checked(one, f"{below}/{source.path}")
        else:
            raise UserError(f"we know no address of {name}: give that of a folder with {source.path}, with --address")
    for one, text in fresh.items():
        with whole_file(place(one)) as file:
            file.write(text)
        prompt_file(one)
    return {one: place(one) for one in wanted.files}


def _checked(name: str, url: str) -> str:
    """The text at `url`: the bytes expected, and prompts that can be read."""
    body = download(url)
    verify(name, url, hashlib.sha256(body).hexdigest(), "name a folder with the right file with --address")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{url} is not UTF-8 text ({error.reason}): the address may be of something else") from error
    read(text, url)
    return text


def download(url: str) -> bytes:
    """The file at `url`, in memory. Raises UserError for any failure, a file cut short or one beyond the limits."""
    body = bytearray()
    until = time.monotonic() + LONGEST
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=PATIENCE) as answer:
            if not answer.is_success:
                raise UserError(f"cannot download {url} (HTTP {answer.status_code}): check the address")
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise UserError(f"{url} is larger than {MOST_BYTES:,} bytes, so it is not what we look for")
                if time.monotonic() > until:
                    raise UserError(f"{url} took more than {LONGEST:.0f} s: try again on a better connection")
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:  # the latter two of a proxy
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot download {url} ({reason}): check the connection, the proxy and the address") from error
    return bytes(body)
