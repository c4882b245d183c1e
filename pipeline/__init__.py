"""What stages share: training, the defender's inputs, where files are, the environment they ran in."""
