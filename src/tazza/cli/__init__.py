"""The command ``tazza``."""
