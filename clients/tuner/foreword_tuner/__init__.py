"""From a data file to a served task: trains a prefix on a frozen base model and pushes it."""
