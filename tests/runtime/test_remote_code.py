"""Proves that what is read from the shipped files as text is what Python gets by importing them."""

from hf_gpt_scratch import GPTScratchConfig
from hf_gpt_scratch.model import AUTO_MAP as IMPORTED_AUTO_MAP
from hf_gpt_scratch.model.configuration_gpt_scratch import RULES
from hf_gpt_scratch.runtime.remote_code import AUTO_MAP, CODE_FILES, CODE_FOLDER, DEFAULTS, is_code
from tests.older_release import ENTRIES


def test_the_list_of_code_files_is_the_folder() -> None:
    assert sorted(path.name for path in CODE_FOLDER.iterdir() if is_code(path.name)) == list(CODE_FILES)
    assert set(ENTRIES) <= set(CODE_FILES)
    assert not is_code("sub/modeling_gpt_scratch.py")


def test_declarations_are_those_of_the_class() -> None:
    assert AUTO_MAP == IMPORTED_AUTO_MAP
    default = GPTScratchConfig()
    assert {field: getattr(default, field) for field in DEFAULTS} == DEFAULTS | {"intermediate_size": 4 * 768}
    assert DEFAULTS.keys() == RULES.keys()
