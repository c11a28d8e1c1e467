"""oneDNN, the DNN library of CPUs; optional, see `OnednnLibrary`."""

from tazza.dnn.onednn.library import OnednnLibrary as OnednnLibrary

__all__ = ["OnednnLibrary"]
