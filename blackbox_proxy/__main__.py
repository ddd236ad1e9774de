"""`python -m blackbox_proxy` is the command `blackbox-proxy`."""

from blackbox_proxy.cli import main

if __name__ == "__main__":
    main()
