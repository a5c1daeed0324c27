"""What a data folder that is none is called."""

from pathlib import Path

import pytest

from daemon.core.errors import DataFolderError
from daemon.inspect.central_reading import check_data_folder
from daemon.inspect.open_registry import open_registry


@pytest.mark.parametrize("read", [check_data_folder, open_registry])
def test_a_file_is_not_called_missing(read: object, tmp_path: Path) -> None:
    path = tmp_path / "data"
    assert callable(read)
    with pytest.raises(DataFolderError, match="does not exist"):
        read(path)
    path.touch()
    with pytest.raises(DataFolderError, match="is not a folder") as refused:
        read(path)
    assert "--data" in refused.value.hint
