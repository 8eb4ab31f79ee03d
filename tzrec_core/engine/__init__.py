"""Training, evaluation and prediction loops, optimizers and checkpoints."""
