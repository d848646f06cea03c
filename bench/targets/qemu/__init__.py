"""ARM64 on an x86-64 machine: QEMU user mode runs the worker and counts its instructions.

`space.py` builds the emulated user space in the cache directory, `target.py` runs requests in it.
"""
