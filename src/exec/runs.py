"""What runs there are."""

from _checkout import run

if __name__ == "__main__":
    run("runs")
