"""Neural-network operations behind one small interface; ``ctx.dnn`` is an implementation for the context's device."""

from tazza.dnn.interface import Activation as Activation
from tazza.dnn.interface import Array as Array
from tazza.dnn.interface import Dnn as Dnn
from tazza.dnn.interface import Pair as Pair
from tazza.dnn.reference import ReferenceDnn as ReferenceDnn

__all__ = ["Activation", "Array", "Dnn", "Pair", "ReferenceDnn"]
