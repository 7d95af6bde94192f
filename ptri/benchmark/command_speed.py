"""Time of the rig posterior, and its growth."""


def add_arguments(parser): ...
def run(args):
    return ""
