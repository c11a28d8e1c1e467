"""A network trained on real handwritten digits, written once for every device; ``tazza demo`` runs it."""

from tazza.demo.settings import Outcome as Outcome
from tazza.demo.settings import Settings as Settings
from tazza.demo.training import Training as Training
from tazza.demo.training import run as run

__all__ = ["Outcome", "Settings", "Training", "run"]
