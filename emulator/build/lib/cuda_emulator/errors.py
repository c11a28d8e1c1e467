"""What the emulator raises. A bad value in a call is an ordinary ``ValueError``."""


class EmulatorError(Exception):
    """The emulator cannot do what was asked of it; the message says what to change."""


class BuildError(EmulatorError):
    """The library or a kernel image cannot be built: no compiler, no header, or the compiler's own complaint."""


class StartError(EmulatorError):
    """The emulator cannot take the driver's place in this process."""
