"""TOFU's official scores of a file of results."""

from _checkout import run

if __name__ == "__main__":
    run("score")
