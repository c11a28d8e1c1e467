"""The backends that come with tazza, siblings that import only `tazza.spi` and never each other.

To add one: a package here (or in your own distribution, with an entry point in the group ``tazza.backends``) with a
function ``create_driver() -> tazza.spi.Driver``; then run ``pytest --pyargs tazza.testing.contract
--tazza-backend=NAME`` until it passes.
"""
