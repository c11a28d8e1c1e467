"""Tools for the tests of programs that use tazza, and for those of its backends.

Simulated devices with a seed, thread jitter, injected driver faults, a pytest plugin, and in `tazza.testing.contract`
the battery of tests that every backend passes. Nothing here imports pytest but the plugin and the battery.
"""

from tazza.testing.faults import Fault as Fault
from tazza.testing.faults import FaultyDriver as FaultyDriver
from tazza.testing.faults import inject as inject
from tazza.testing.faults import random_faults as random_faults
from tazza.testing.perturbation import jitter as jitter
from tazza.testing.simulation import Simulation as Simulation
from tazza.testing.simulation import simulate as simulate

__all__ = ["Fault", "FaultyDriver", "Simulation", "inject", "jitter", "random_faults", "simulate"]
