"""Training: objectives, the loop, checkpoints, and the public `fit`."""
