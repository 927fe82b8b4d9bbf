"""Make, inspect, compare and convert mask files."""

from _checkout import run

if __name__ == "__main__":
    run("mask")
