"""What every text encoder refuses before it reads a word."""

from fedray.encoders import Problem, Raw


def checked(raw: Raw) -> str | Problem:
    """`raw` as it is, or wrong_type for bytes, empty_text, not_utf8 for half of a surrogate pair."""
    if not isinstance(raw, str):
        return Problem("wrong_type", "bytes, not a text")
    if not raw.strip():
        return Problem("empty_text")
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        return Problem("not_utf8", f"a lone surrogate at character {error.start}")
    return raw
