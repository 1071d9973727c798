"""The engine: state, step, optimizer, checkpoints and what people see of a run."""
