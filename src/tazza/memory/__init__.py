"""Pure allocation arithmetic: integers in, integers out; no devices, no locks."""
