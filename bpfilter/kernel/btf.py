"""Numbers of types in the running kernel's own BTF.

A program gets them as constants: libbpf cannot tell the copies of a type apart that several
modules carry, and refuses the whole object (`relocation decision ambiguity`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from bpfilter.kernel.libbpf import library

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_STRUCT = 4


@cache
def struct_id(name: str) -> int:
    """The id of a struct that vmlinux itself defines; 0 if it is a module's or there is no BTF."""
    lib = library()
    lib.btf__parse.restype = ctypes.c_void_p
    lib.btf__parse.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    lib.btf__find_by_name_kind.restype = ctypes.c_int32
    lib.btf__find_by_name_kind.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
    lib.btf__free.restype = None
    lib.btf__free.argtypes = (ctypes.c_void_p,)
    btf = lib.btf__parse(str(VMLINUX).encode(), None)
    if not btf:
        return 0
    found = lib.btf__find_by_name_kind(btf, name.encode(), _STRUCT)
    lib.btf__free(btf)
    return max(int(found), 0)
