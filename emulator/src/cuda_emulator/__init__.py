"""A CUDA driver that runs on the CPU: ``start()``, then use cuda.bindings, cuda.core or Numba's memory side as ever."""

from cuda_emulator.build import library as library
from cuda_emulator.emulated_libraries import libraries as libraries
from cuda_emulator.errors import BuildError as BuildError
from cuda_emulator.errors import EmulatorError as EmulatorError
from cuda_emulator.errors import StartError as StartError
from cuda_emulator.faults import Fault as Fault
from cuda_emulator.kernels import compile_kernels as compile_kernels
from cuda_emulator.running import Emulator as Emulator
from cuda_emulator.running import environment as environment
from cuda_emulator.running import start as start
from cuda_emulator.running import start_with as start_with
from cuda_emulator.running import started as started
from cuda_emulator.settings import Settings as Settings

__all__ = [
    "BuildError",
    "Emulator",
    "EmulatorError",
    "Fault",
    "Settings",
    "StartError",
    "compile_kernels",
    "environment",
    "libraries",
    "library",
    "start",
    "start_with",
    "started",
]
