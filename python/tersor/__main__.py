"""``python -m tersor`` is the command ``tersor``."""

from tersor.cli import main

if __name__ == "__main__":
    main()
