"""Small helpers that know nothing of devices."""
