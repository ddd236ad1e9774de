"""The proof that it works: tasks in, systems compared on the same rows with honest statistics, and the pair's fit."""
