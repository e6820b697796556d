"""Training and evaluation of the video models on the generated tasks."""
