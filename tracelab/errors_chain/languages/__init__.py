"""One parser per family of stack traces."""
