#!/usr/bin/env bash
# datasets 5.2.0, Dataset.map() with a function that a script imports from a module of its own, which is then edited.
# One would guess: the cache is keyed by what the function does, so an edit makes map() run again, as it does for a
# function of the script itself.
# Behavior: an imported function is hashed by its module and name. After the edit the second run, a process of its own,
# gives the first run's rows, without a word: tokens of the old code. The same edit in the script gives the new ones.
# Seen on 2026-11-30, a function that adds 1000, then 2000: imported [1001] and [1001], in the script [1001] and [2001].
# The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --no-compile --disable-pip-version-check datasets==5.2.0
export HF_HOME=home HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
env/bin/python -c 'import datasets; datasets.Dataset.from_dict({"a": [1]}).to_parquet("rows.parquet")' 2> log
cat > run.txt <<'PYTHON'
import datasets

datasets.disable_progress_bars()
print(datasets.load_dataset("parquet", data_files="rows.parquet", split="train").map(add)["b"][:])
PYTHON
imported="" own=""
for number in 1000 2000; do
    function="def add(row):
    return {'b': row['a'] + $number}"
    echo "$function" > preparation.py
    { echo "from preparation import add"; cat run.txt; } > imports.py
    { echo "$function"; cat run.txt; } > defines.py
    imported="$imported $(env/bin/python imports.py 2>> log)"
    own="$own $(env/bin/python defines.py 2>> log)"
done
echo "imported function:$imported; function of the script:$own"
[ "$imported" = " [1001] [1001]" ] && [ "$own" = " [1001] [2001]" ]
