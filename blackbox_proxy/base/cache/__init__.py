"""What is asked twice is paid once.

base.py asks and keeps, reading.py says what the rows answer, rows.py has their bytes and keys; store.py is the table of
them, file.py the file it lies in, seeds.py what other machines begin with.
"""
