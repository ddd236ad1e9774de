"""What is asked twice is paid once: base.py asks and keeps, rows.py makes rows of positions, store.py is the file."""
