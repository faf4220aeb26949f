"""What the model is trained for: one file per objective."""
