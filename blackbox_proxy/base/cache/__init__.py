"""What is asked twice is paid once.

base.py asks, reading.py says what the rows answer, keeping.py makes rows of an answer, rows.py their bytes and keys;
store.py is the table of them, file.py the file it lies in.
"""
