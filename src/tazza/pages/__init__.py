"""Pages and files for people to look at: memory snapshots and run reports. Found by name, late."""
