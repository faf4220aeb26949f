"""What the verbs of the command line do that need more than a few lines."""
