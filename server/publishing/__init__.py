"""An upload, from its body to a version that serves."""
