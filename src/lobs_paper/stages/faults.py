"""Which errors are one line: mistakes of the user, and what the machine refuses. All others keep their traceback."""

from __future__ import annotations

import errno
import os
import re
from dis import opmap

_SPACE = "free some, or name another folder (folders.runs=..., folders.data=..., folders.output=...)"
_RIGHTS = "make it writable, or name another folder (folders.runs=..., folders.data=..., folders.output=...)"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: "a folder is needed where a file lies",
    errno.EEXIST: "a folder is needed where a file lies",
    errno.EISDIR: "a file is needed where a folder lies",
    errno.EIO: "the disk has errors",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
# How libraries that write files by themselves (safetensors, SQLite) say the same.
_TEXTS = {"database or disk is full": errno.ENOSPC, "readonly database": errno.EROFS}
_WRITERS = ("safetensors", "safetensors_rust", "sqlalchemy", "sqlite3", "mlflow")
_CODE = re.compile(r"(?:os error |code: )(\d+)")
_MEMORY = re.compile(r"can't allocate memory|out of memory|Unable to allocate", re.IGNORECASE)


def is_user_error(error: BaseException) -> bool:
    """Whether our own code raised a ValueError or TypeError on purpose; one from inside torch keeps its traceback."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not isinstance(error, (ValueError, TypeError)):
        return False
    frame = last.tb_frame
    # A slip in our code ends there, too, but not in a statement `raise`.
    raised = frame.f_code.co_code[last.tb_lasti] == opmap["RAISE_VARARGS"]
    return raised and frame.f_globals.get("__name__", "").split(".")[0] in ("lobs", "lobs_paper")


def machine_fault(error: BaseException) -> str | None:
    """One line about a full or read-only disk, or about too little memory; None for any other error."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY.search(text)):
        return f"not enough memory ({text or 'none was left'}): take smaller batches or sizes, or set memory=<GiB>"
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (isinstance(error, OSError) or type(error).__module__.split(".")[0] in _WRITERS):
        found = _CODE.search(text)
        code = int(found[1]) if found else next((code for words, code in _TEXTS.items() if words in text), None)
    if code not in _REMEDIES:
        return None
    place = getattr(error, "filename", None) or "a file that was to be written"
    return f"{place}: {os.strerror(code)}: {_REMEDIES[code]}"
