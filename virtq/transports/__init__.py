"""How the two halves meet. Each transport serves any device and carries any driver; `base` has the
contracts."""
