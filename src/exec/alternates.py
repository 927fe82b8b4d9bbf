"""Sample other answers to the forget questions from the model, for the method AltPO."""

from _checkout import run

if __name__ == "__main__":
    run("alternates")
