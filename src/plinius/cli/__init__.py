"""The command line. Nothing else in the package imports it.

`main` is the group of all commands; each command family is a file of its own (`keys`, `data`,
`job`, `train`, `results`, `region`, `bench`, `doctor`); `shared_options` holds the options they
share, `console` writes to the terminal, `inspect_files` describes files without a key.

To add a family: write its commands in a new file with `@click.command()`, and list them in
`main.py`. Import torch only inside a command that needs it.
"""
