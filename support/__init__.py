"""What is in no paper: files, pictures, weights, checkpoints, options, tables. drm_min.py is the method."""
