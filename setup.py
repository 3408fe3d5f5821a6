from setuptools import setup

# Two things that pyproject.toml cannot say: cffi's build hook, and the tag of the wheel. The C
# extension uses the stable ABI alone (cffi's default), so one wheel serves CPython 3.11 and later.
setup(
    cffi_modules=["native/build_persist.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
