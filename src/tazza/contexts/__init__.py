"""Contexts with what one kind of device alone has; named late by the registry."""
