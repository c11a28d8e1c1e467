"""Neural-network operations behind one small interface; ``ctx.dnn`` is an implementation for the context's device."""

from tazza.dnn.buffers import BufferDnn as BufferDnn
from tazza.dnn.cuda.library import CudnnLibrary as CudnnLibrary
from tazza.dnn.cuda.state import CudnnState as CudnnState
from tazza.dnn.cuda.state import CudnnWorkspace as CudnnWorkspace
from tazza.dnn.cuda.state import SyncedCudnnState as SyncedCudnnState
from tazza.dnn.cuda.wrapper import CudnnWrapper as CudnnWrapper
from tazza.dnn.interface import Activation as Activation
from tazza.dnn.interface import ActivationKind as ActivationKind
from tazza.dnn.interface import Array as Array
from tazza.dnn.interface import Dnn as Dnn
from tazza.dnn.interface import Pair as Pair
from tazza.dnn.library import Choice as Choice
from tazza.dnn.library import Layout as Layout
from tazza.dnn.library import Library as Library
from tazza.dnn.library import Operation as Operation
from tazza.dnn.library import Packing as Packing
from tazza.dnn.library import Plan as Plan
from tazza.dnn.planned import PlannedDnn as PlannedDnn
from tazza.dnn.reference import ReferenceDnn as ReferenceDnn
from tazza.dnn.reference_library import ReferenceLibrary as ReferenceLibrary
from tazza.dnn.state import DnnState as DnnState
from tazza.dnn.state import SyncedDnnState as SyncedDnnState
from tazza.dnn.weights import Weights as Weights
from tazza.dnn.workspace import DnnWorkspace as DnnWorkspace
from tazza.dnn.workspace import Lease as Lease
from tazza.dnn.wrapper import DnnWrapper as DnnWrapper

__all__ = [
    "Activation",
    "ActivationKind",
    "Array",
    "BufferDnn",
    "Choice",
    "CudnnLibrary",
    "CudnnState",
    "CudnnWorkspace",
    "CudnnWrapper",
    "Dnn",
    "DnnState",
    "DnnWorkspace",
    "DnnWrapper",
    "Layout",
    "Lease",
    "Library",
    "Operation",
    "Packing",
    "Pair",
    "Plan",
    "PlannedDnn",
    "ReferenceDnn",
    "ReferenceLibrary",
    "SyncedCudnnState",
    "SyncedDnnState",
    "Weights",
]
