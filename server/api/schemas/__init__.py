"""Bodies and answers, and how one is made from the other."""
