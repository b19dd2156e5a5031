"""What pyproject.toml cannot say: conf/, at the top of the repository, is inside pcbench once it is built."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Puts conf/ beside the modules, but for an editable installation, which finds it where it is."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("conf", str(Path(self.build_lib, "pcbench", "conf")))


setup(cmdclass={"build_py": BuildWithConf})
