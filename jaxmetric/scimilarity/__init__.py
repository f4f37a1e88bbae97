"""SCimilarity's model directories, read and written without torch.

`directory` is both ways between such a directory and our variables; `torch_file` reads and writes the
files in it, and executes nothing.
"""
