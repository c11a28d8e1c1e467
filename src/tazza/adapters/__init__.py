"""Adapters: one small file for each library that may run beside tazza in a process, found by name.

`tazza.core.adapter.Adapter` is their interface. A file here is imported when its library has been imported by somebody
else, or by a user who wants what it offers: ``tazza.adapters.onnxruntime.session``, ``tazza.adapters.torch.generator``.
"""
