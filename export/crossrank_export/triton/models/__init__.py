"""Python-backend models; each file is copied into a repository as `model.py` and runs inside Triton's stub."""
