"""Compare finished runs, with intervals over questions."""

from _checkout import run

if __name__ == "__main__":
    run("compare")
