"""The hot path: frames, accounts, blocks, lanes, the pool, buffers and the base of contexts.

Every module here runs as plain Python and, where a compiler was there when tazza was installed, compiled by Cython. The
``.py`` file is the code; the ``.pxd`` file beside it is the layout of its objects in the compiled form.
"""

from tazza.hot import pool as _pool
from tazza.hot._host import HOOKED as HOOKED
from tazza.hot._host import forget_refusal as forget_refusal
from tazza.hot._host import host_blocks as host_blocks
from tazza.hot._host import refusal as refusal
from tazza.hot._host import settle_frees as settle_frees
from tazza.hot.account import Account as Account
from tazza.hot.block import Block as Block
from tazza.hot.block import ForeignBlock as ForeignBlock
from tazza.hot.buffer import HAS_BUFFER_PROTOCOL as HAS_BUFFER_PROTOCOL
from tazza.hot.buffer import Buffer as Buffer
from tazza.hot.context import ContextCore as ContextCore
from tazza.hot.event import EventCore as EventCore
from tazza.hot.event import Latch as Latch
from tazza.hot.event import Placement as Placement
from tazza.hot.frame import Frame as Frame
from tazza.hot.frame import Scope as Scope
from tazza.hot.frame import current as current
from tazza.hot.frame import frame_of as frame_of
from tazza.hot.frame import run_in as run_in
from tazza.hot.frame import set_default as set_default
from tazza.hot.frame import top as top
from tazza.hot.gate import Gate as Gate
from tazza.hot.hooks import Operation as Operation
from tazza.hot.hooks import emit as emit
from tazza.hot.hooks import listen as listen
from tazza.hot.hooks import point as point
from tazza.hot.hostarray import array_of as array_of
from tazza.hot.hostarray import array_over as array_over
from tazza.hot.lane import Lane as Lane
from tazza.hot.lane import StreamCore as StreamCore
from tazza.hot.pool import Pool as Pool
from tazza.hot.pool import Source as Source
from tazza.hot.process import after_fork as after_fork
from tazza.hot.process import generation as generation
from tazza.hot.process import process as process
from tazza.hot.process import wake as wake
from tazza.hot.queue import QueueCore as QueueCore

COMPILED: bool = not (_pool.__file__ or "").endswith((".py", ".pyc"))
"""Whether the compiled form is in use."""
