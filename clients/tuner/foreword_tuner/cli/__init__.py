"""The commands `foreword tune`, `foreword evaluate` and `foreword distill`."""
