"""Array libraries, found by name: one file each, `ArrayLibrary` in `tazza.core.arraylib` is their interface."""
