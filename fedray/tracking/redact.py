"""Credentials out of what people read: no password in a tag, a file, a warning or an error."""

import re

_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s]*@")
_SETTING = re.compile(r"([?&;](?:\w*password|passwd|pwd|\w*token|\w*secret)=)[^&;\s'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with `user:password@` in any URL, and the value of any `?password=`, replaced by `***`."""
    return _SETTING.sub(r"\1***", _USER.sub(r"\1***@", text))
