"""Plant facts in known weights, and judge scores by whether they find them."""

from _checkout import run

if __name__ == "__main__":
    run("plant")
