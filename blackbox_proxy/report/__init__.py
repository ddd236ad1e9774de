"""What a person or a program looks at: generations in the terminal and as plain data. No arithmetic."""
