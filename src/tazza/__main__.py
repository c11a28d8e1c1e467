"""``python -m tazza`` is ``tazza``."""

from tazza.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
