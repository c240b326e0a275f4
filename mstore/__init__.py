"""Version control for model weights."""
