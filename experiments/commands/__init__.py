"""The commands of `fedta` (`python -m experiments`): one module each, imported when it is called.

`experiments.arguments` lists the commands with their options, without importing them, so that help
is quick; the module of a command has the function `run(options)`, which returns an `ExitStatus`.
"""
