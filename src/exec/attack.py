"""Attack finished runs: few bits, relearning."""

from _checkout import run

if __name__ == "__main__":
    run("attack")
