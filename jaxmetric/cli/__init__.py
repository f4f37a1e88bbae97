"""The shell: `jaxmetric COMMAND`.

`main` goes from arguments to a command and from what went wrong to an exit code; `commands` has one
class for each command, `flags` what several of them are told.
"""
