"""Put requests in, take them out, check what changed."""

from _checkout import run

if __name__ == "__main__":
    run("delta")
