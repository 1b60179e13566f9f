"""Demo tasks of `foreword serve --demo`."""
