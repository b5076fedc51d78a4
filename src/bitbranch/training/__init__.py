"""Training: one loop for all networks, trainings in stages, distillation, and checkpoints."""
