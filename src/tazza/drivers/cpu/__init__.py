"""The host as a device: every backend's reference."""
