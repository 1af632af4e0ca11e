"""The trainer: learns from folders of photos and writes a model that the daemon serves."""
