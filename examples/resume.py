"""Save in the middle, go on in a new context, and get the bits of an uninterrupted run.

Run: python examples/resume.py
"""

from __future__ import annotations

import numpy as np

import tazza as tz


class Walker:
    """A random walk; its position is what must survive."""

    def __init__(self, ctx: tz.Context) -> None:
        self.ctx, self.position = ctx, np.zeros(2)
        ctx.state.register("walker", self)

    def walk(self, steps: int) -> None:
        """Take some steps with the context's random numbers."""
        for _ in range(steps):
            self.position += self.ctx.random.standard_normal(2)
            self.ctx.state.step += 1

    def state_dict(self) -> dict[str, object]:
        """What to save."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over what was saved."""
        self.position = np.array(state["position"])


def main() -> None:
    """Compare 10 steps with 6 steps, a save, a new context and 4 more."""
    with tz.open("cpu", seed=1) as ctx:
        whole = Walker(ctx)
        whole.walk(10)
    with tz.open("cpu", seed=1) as ctx:
        Walker(ctx).walk(6)
        ctx.save("walk.tazza")
    with tz.open("cpu", seed=1) as ctx:
        resumed = Walker(ctx)
        ctx.load("walk.tazza")
        resumed.walk(4)
        print(f"step {ctx.state.step}: {resumed.position.tolist()}")
    assert (resumed.position == whole.position).all()


if __name__ == "__main__":
    main()
