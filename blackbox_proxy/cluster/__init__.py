"""Bulk runs and evaluations on Ray: the rows of jobs/ and evaluation/, asked by actors on many machines.

| module | what is there |
|---|---|
| `checkpoint` | events that outlive the process that noted them |
| `limits`, `budget` | one rate limit and one budget: what is granted, and what those who ask see of it |
| `journal` | lines that are answered and in no part yet |
| `formats`, `folder`, `manifest` | parts, and which rows they hold |
| `desk` | all of these behind one door |
| `engine` | Ray: started, found, its errors |
| `rows` | what runs on it: reading, checking, asking, writing |
| `tasks` | the same of evaluations |
| `passes` | rows through the actors of a cluster |
| `run`, `evaluation` | a bulk run, an evaluation, from the machine that begins it |

Only `engine`, `rows` and `passes` know Ray.
"""
