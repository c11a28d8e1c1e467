"""cuDNN's plans without a GPU: what an operation would need on a described device; planned, not executed."""

from tazza.dnn.cudnn import describe as describe
from tazza.dnn.cudnn.devices import A100 as A100
from tazza.dnn.cudnn.devices import H100 as H100
from tazza.dnn.cudnn.devices import DeviceDescription as DeviceDescription
from tazza.dnn.cudnn.planner import CudnnPlan as CudnnPlan
from tazza.dnn.cudnn.planner import CudnnPlanner as CudnnPlanner
from tazza.dnn.cudnn.planner import PlannerInfo as PlannerInfo

__all__ = ["A100", "H100", "CudnnPlan", "CudnnPlanner", "DeviceDescription", "PlannerInfo", "describe"]
