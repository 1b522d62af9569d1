"""`python -m signalbox.cli` is `signalbox`."""

from signalbox.cli.main import main

if __name__ == "__main__":
    main()
