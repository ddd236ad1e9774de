"""What can be set, each setting once: the file `proxy.toml`, the environment, and the options of the commands.

| module | what is there |
|---|---|
| `table` | `setting`: a default, a description, an option and its limits in one place; `Table`, what all tables are |
| `tables` | the tables of the file, one class each |
| `settings` | `Settings`: all tables; `load`: options over environment over file; its mistakes told by their place |
| `keys` | the settings one by one, for options, comments and pages |
| `writing` | a commented file to begin with, the settings in effect, the table for the docs |
"""
