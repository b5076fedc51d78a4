"""Training: one loop for all networks, and checkpoints."""
