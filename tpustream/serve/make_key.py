"""`python -m tpustream.serve.make_key NAME`: a new API key, and the line for --api_keys_file."""

import argparse
import sys

from tpustream.serve.access.api_keys import make_key


def main() -> int:
    """Print the key, which is shown this once, and its line; 1 for a name that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m tpustream.serve.make_key",
        description="Make an API key. Give the key to its user, and append the line to the file of "
        "--api_keys_file, which holds only its hash. Bounds may follow on the same line: "
        "requests_per_minute=60 tokens_per_minute=20000 streams=4.",
    )
    parser.add_argument("name", help="who it is for: shown in logs, and shares slots fairly with others")
    try:
        key, line = make_key(parser.parse_args().name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"key:  {key}\nline: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
