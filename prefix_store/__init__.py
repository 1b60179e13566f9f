"""What a prefix is and where it is kept. A library: no server needed."""
