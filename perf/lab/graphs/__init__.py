"""An exported graph before and after the passes."""
