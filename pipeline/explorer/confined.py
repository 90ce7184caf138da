"""A process that can write nowhere but in one folder, whatever it is talked into: Linux' Landlock.

The first defence is that only questions are run; this is the second. Where the kernel has no Landlock (before 5.13, or
another system), there is only the first.
"""

import ctypes
import os

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""System calls, the same on every architecture (landlock(7))."""
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38
_WRITING = 0b0001_1111_1111_0010
"""WRITE_FILE, REMOVE_DIR, REMOVE_FILE and all MAKE_ rights, which every version knows."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
"""Since versions 2 and 3."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def write_only_in(folder: str) -> bool:
    """Forbid this thread, and those that it starts from now on, to change any file outside the folder.

    Returns whether the kernel holds it to that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    access = _WRITING | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = _Ruleset(access)
    ruleset = libc.syscall(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0)
    if ruleset < 0:
        return False
    beneath = os.open(folder, os.O_PATH)
    try:
        rule = _Beneath(access, beneath)
        added = libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        return not (added or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(_RESTRICT, ruleset, 0))
    finally:
        os.close(beneath)
        os.close(ruleset)
