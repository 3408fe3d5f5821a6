from setuptools import setup

# cffi's build hook has no pyproject.toml spelling; all the rest of the metadata lives there.
setup(cffi_modules=["native/build_persist.py:ffibuilder"])
