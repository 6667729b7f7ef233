"""Films: video files, GIFs and picture sequences as they come in and as they go out. Knows nothing of models."""
