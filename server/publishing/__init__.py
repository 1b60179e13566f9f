"""Publishing: from an upload's body to a version that serves requests."""
