"""What training carries, one step of it, and its checkpoints."""
