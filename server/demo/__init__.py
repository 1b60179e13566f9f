"""What `foreword serve --demo` begins with."""
