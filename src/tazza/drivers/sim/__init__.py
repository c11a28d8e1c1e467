"""Simulated devices: stricter than real ones, in ordinary memory, for tests without hardware.

Each device has an address space of its own that the host cannot dereference, queues on their own threads that run late
on purpose, a memory limit, and abilities that can be switched off. Never chosen by ``"auto"``.
"""
